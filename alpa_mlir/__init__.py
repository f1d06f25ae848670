"""alpa_mlir: spread a StableHLO program over a cluster, write the decision as MLIR, run it.

The package has three wings besides this front door: `dialect` (what the IR can say), `passes` (the
decisions, module in, module out) and `runtime` (plan in, tensors out).  `passes` and `runtime` never
import each other: they meet only in the IR.  The Python API is loaded when it is first asked for.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alpa_mlir.api import Planned, load, plan, run, use_cpu_devices
    from alpa_mlir.dialect.diagnostics import CompileError
    from alpa_mlir.parallel_function import parallelize

# XLA reads this when its library is loaded; at its default it lists the devices of every client on stderr.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

__version__ = "0.1.0"

_API = {
    "CompileError": "dialect.diagnostics",
    "Planned": "api",
    "load": "api",
    "parallelize": "parallel_function",
    "plan": "api",
    "run": "api",
    "use_cpu_devices": "api",
}
__all__ = ["CompileError", "Planned", "load", "parallelize", "plan", "run", "use_cpu_devices"]


def __getattr__(name: str) -> object:
    if name not in _API:
        raise AttributeError(f"module 'alpa_mlir' has no attribute {name!r}")
    return getattr(import_module(f"alpa_mlir.{_API[name]}"), name)
