"""The execution: plan in, tensors out. Knows PJRT and MPI; knows no solver and no cost model."""

import os

# XLA reads this when it is loaded; at its default it lists the devices of every client on stderr.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
