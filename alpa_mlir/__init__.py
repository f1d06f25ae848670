"""alpa_mlir: spread a StableHLO program over a cluster, write the decision as MLIR, run it.

The package has three wings besides this front door: `dialect` (what the IR can say), `passes` (the
decisions, module in, module out) and `runtime` (plan in, tensors out).  `passes` and `runtime` never
import each other: they meet only in the IR.
"""

import os

# XLA reads this when its library is loaded; at its default it lists the devices of every client on stderr.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

__version__ = "0.1.0"
