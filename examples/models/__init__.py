"""Built-in models in plain JAX: programs to plan, to run and to measure.

`MODELS` maps a name (`gpt`, `moe`, …) to its `Model`: a configuration dataclass, the named sizes of the benchmarks,
and functions that make its training or inference step. `alpa-mlir-export` writes any of them as StableHLO.
"""

from . import bert, gpt, llama, mlp, moe, wide_resnet
from .step import Model, TrainStep

MODELS: dict[str, Model] = {module.MODEL.name: module.MODEL for module in (mlp, gpt, moe, wide_resnet, llama, bert)}
ALIASES = {"wide-resnet": "wide_resnet", "wrn": "wide_resnet"}
"""Other spellings of names in `MODELS`."""

__all__ = ["ALIASES", "MODELS", "Model", "TrainStep"]
