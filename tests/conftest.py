"""Settings that must stand before jax is imported: eight CPU devices in this process, one BLAS thread, Ctrl-C.

XLA's CPU client takes its number of threads from PJRT_NPROC; with fewer threads than devices that wait for
each other in a collective, it deadlocks on machines with few cores.  Started in the background of a shell
(`nohup … &`), Python ignores SIGINT, and so would what the tests start and interrupt.
"""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest

DEVICES = 8
os.environ.setdefault("PJRT_NPROC", str(max(8, 4 * DEVICES)))
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={DEVICES}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# What tests compile is theirs alone; those that run side by side share it.
if "ALPA_MLIR_CACHE_DIR" not in os.environ:
    os.environ["ALPA_MLIR_CACHE_DIR"] = tempfile.mkdtemp(prefix="alpa-mlir-tests-")
    atexit.register(shutil.rmtree, os.environ["ALPA_MLIR_CACHE_DIR"], ignore_errors=True)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def quick_compiler() -> Iterator[None]:
    """XLA without most optimisations: what is tested is what programs say, not how fast they are."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
