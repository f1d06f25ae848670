"""Settings that must stand before jax is imported: eight CPU devices in this process, one BLAS thread.

XLA's CPU client takes its number of threads from PJRT_NPROC; with fewer threads than devices that wait for
each other in a collective, it deadlocks on machines with few cores.
"""

import os

DEVICES = 8
os.environ.setdefault("PJRT_NPROC", str(max(8, 4 * DEVICES)))
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={DEVICES}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
