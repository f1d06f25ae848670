"""alpa_mlir: spread a StableHLO program over a cluster, write the decision as MLIR, run it.

The package has three wings besides this front door: `dialect` (what the IR can say), `passes` (the
decisions, module in, module out) and `runtime` (plan in, tensors out).  `passes` and `runtime` never
import each other: they meet only in the IR.
"""

__version__ = "0.1.0"
