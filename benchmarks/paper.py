"""The plans that the Alpa paper measured, priced by this cost model: predicted against measured speed.

    python -m benchmarks.fidelity paper [gpt moe wide_resnet] [--gpus 1 4 8 …]

The plans are those that Alpa's authors published for p3.16xlarge (`benchmark/alpa/suite_auto_gpt.py`,
`suite_auto_moe.py`, `suite_wresnet.py` of alpa-projects/alpa: microbatches, layers in stages, submeshes, where the
batch is on the first axis), every layer recomputed in the backward pass.  They are measured in TFLOP/s per GPU in
`osdi22_artifact/results_e2e.tsv` (rows `parax.auto`), and in figure 8 of the paper as PFLOP/s of all.  Operations are
counted as there: for GPT and MoE with what is recomputed, for Wide-ResNet without, and without padding.  They ran, so
the prediction of memory is not asked whether they fit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from alpa_mlir.models import MODELS
from alpa_mlir.models.gpt import GptConfig
from alpa_mlir.models.moe import MoeConfig
from alpa_mlir.models.wide_resnet import WideResnetConfig, block_shapes
from alpa_mlir.passes.manual import ManualStage, write_stages
from alpa_mlir.planner import PlanOptions, plan
from alpa_mlir.tools.plan_summary import summarize
from benchmarks.plan_quality import BATCH, Pair, cluster_of, program


@dataclass(frozen=True)
class Published:
    """A plan of the paper: stages as (layers, mesh), what was measured (TFLOP/s per GPU; PFLOP/s in figure 8)."""

    family: str
    size: str
    gpus: int
    microbatches: int
    stages: tuple[tuple[int, tuple[int, ...]], ...]
    measured: float
    figure: float = 0.0
    constrain: str = ""
    batch: int = 0


DATA, BATCH_ON_X = "x=zero2", "arg(batch*)=[{x},{}]"
"""Alpa with the batch on the first axis: with optimizer state on it (reduce-scatter preferred), or by itself."""
PLANS = (
    Published("gpt", "350M", 1, 512, ((1, (1,)),), 45.07),
    Published("gpt", "1.3B", 4, 128, ((3, (2,)),) * 2, 58.21, 0.21, DATA),
    Published("gpt", "2.6B", 8, 128, ((2, (2,)), (2, (2,)), (4, (4,))), 61.61, 0.47),
    Published("gpt", "6.7B", 16, 64, ((4, (2, 4)),) * 2, 60.0, 0.94, DATA),
    Published("gpt", "15B", 32, 128, ((4, (2, 4)),) * 4, 59.9, 1.89, DATA),
    Published("gpt", "39B", 64, 1024, ((1, (4,)),) * 16, 57.0, 3.62, "x=tensor"),
    Published("moe", "380M", 1, 512, ((1, (1,)),), 45.46),
    Published("moe", "1.3B", 4, 32, ((4, (2,)),) * 2, 39.92, 0.146, BATCH_ON_X),
    Published("moe", "2.4B", 8, 32, ((4, (4,)),) * 2, 45.76, 0.346, BATCH_ON_X),
    Published("moe", "10B", 16, 16, ((4, (8,)),) * 2, 45.36, 0.71),
    Published("moe", "27B", 32, 128, ((1, (4,)),) * 8, 38.84, 1.22),
    Published("moe", "70B", 64, 64, ((1, (8,)),) * 8, 36.55, 2.31),
    Published("wide_resnet", "250M", 1, 24, ((16, (1,)),), 8.3),
    Published("wide_resnet", "1B", 4, 24, ((16, (4,)),), 8.16, 0.029),
    Published("wide_resnet", "2B", 8, 24, ((8, (4,)),) * 2, 8.04, 0.06),
    Published("wide_resnet", "4B", 16, 32, ((5, (4,)), (4, (4,)), (7, (8,))), 6.76, 0.106),
    Published("wide_resnet", "6.8B", 32, 32, ((5, (8,)), (4, (8,)), (4, (8,)), (3, (8,))), 6.6, 0.208),
    Published("wide_resnet", "13B", 64, 38, ((4, (8,)),) * 6 + ((5, (8,)), (4, (8,))), 5.3, 0.337, batch=1520),
)


@dataclass(frozen=True)
class Speed:
    """A published plan: predicted seconds of a step, predicted and measured PFLOP/s of all GPUs (figure 8's beside)."""

    plan: str
    gpus: int
    seconds: float
    predicted: float
    measured: float
    figure: float

    @property
    def ratio(self) -> float:
        """Predicted over measured speed."""
        return self.predicted / self.measured


def operations(family: str, size: str, batch: int) -> float:
    """Floating-point operations of a step as the paper counts them."""
    config = replace(MODELS[family].presets[size], batch=batch)
    if isinstance(config, GptConfig):
        return _gpt_operations(config)
    if isinstance(config, MoeConfig):
        return _moe_operations(config)
    assert isinstance(config, WideResnetConfig), config
    return _wide_resnet_operations(config)


def _gpt_operations(c: GptConfig) -> float:
    """96·B·S·L·H²·(1 + S/6H) + 6·B·S·H·V (Narayanan et al. 2021, with the logits not recomputed)."""
    tokens = c.batch * c.sequence
    layers = 96 * tokens * c.layers * c.hidden**2 * (1 + c.sequence / (6 * c.hidden))
    return layers + 6 * tokens * c.hidden * c.vocabulary


def _moe_operations(c: MoeConfig) -> float:
    """Four times the forward pass of half plain, half expert layers (two experts a token), and the logits."""
    tokens, h = c.batch * c.sequence, c.hidden
    attention = 8 * tokens * h**2 + 4 * tokens * c.sequence * h
    plain = attention + 4 * tokens * h**2 * c.mlp_factor
    gates = 2 * tokens * h * c.experts + 4 * tokens * c.group
    experts = attention + 8 * tokens * h**2 * c.mlp_factor + gates + 8 * tokens * h * c.group
    return 4 * (plain + experts) * c.layers / 2 + 6 * tokens * h * c.vocabulary


def _wide_resnet_operations(c: WideResnetConfig) -> float:
    """Three times the multiplications and additions of the forward pass, without those of padding."""
    side = c.image // 2
    found = 2 * 3 * c.channels * (7 * side - 9) ** 2
    side //= 2
    for inputs, channels, stride in block_shapes(c):
        wide = c.width * channels
        found += 2 * inputs * channels * side**2
        valid = 3 * side - 2 if stride == 1 else 3 * side // 2 - 1
        side //= stride
        found += 2 * channels * wide * valid**2 + 2 * wide * 4 * channels * side**2
        found += 2 * inputs * 4 * channels * side**2 if inputs != 4 * channels else 0
    return 3 * c.batch * (found + 2 * inputs * 4 * c.classes)


def predict(published: Published) -> Speed:
    """Price one published plan."""
    p = published
    batch = p.batch or BATCH[p.family]
    with TemporaryDirectory() as folder:
        module = program(Pair(p.family, p.size, p.gpus, batch), Path(folder))
    write_stages(module, tuple(_stages(p)))
    options = PlanOptions(
        cluster_of(p.gpus).with_sizes(memory=2**36),
        microbatches=p.microbatches,
        layers=sum(count for count, _ in p.stages),
        schedule="1f1b",
        remat="full",
        constrain=p.constrain,
        allow_per_microbatch_statistics=p.family == "wide_resnet",
    )
    seconds = summarize(plan(module, options)).step_seconds or 0.0
    speed = operations(p.family, p.size, batch) / seconds / 1e15
    return Speed(f"{p.family} {p.size}", p.gpus, seconds, speed, p.measured * p.gpus / 1e3, p.figure)


def _stages(p: Published) -> Iterator[ManualStage]:
    layer = device = 0
    for count, shape in p.stages:
        size = 1
        for n in shape:
            size *= n
        yield ManualStage(shape, tuple(range(device, device + size)), (layer, layer + count - 1))
        layer, device = layer + count, device + size


def paper(families: Sequence[str], gpus: Sequence[int]) -> list[Speed]:
    """The table of *paper*."""
    table = Table(title="published plans on V100s: predicted and measured speed")
    for column in ("model", "GPUs", "step s", "predicted PFLOP/s", "measured", "ratio", "figure 8", "ratio to it"):
        table.add_column(column, justify="left" if column == "model" else "right")
    found = []
    for published in PLANS:
        if published.family not in families or published.gpus not in gpus:
            continue
        begin = time.process_time()
        s = predict(published)
        print(f"{s} ({s.ratio:.3f}, {time.process_time() - begin:.0f} CPU s)", file=sys.stderr, flush=True)
        found.append(s)
        figure = (f"{s.figure:.3g}", f"{s.predicted / s.figure:.2f}") if s.figure else ("", "")
        speeds = (f"{s.predicted:.3f}", f"{s.measured:.3f}", f"{s.ratio:.2f}")
        table.add_row(s.plan, str(s.gpus), f"{s.seconds:.4g}", *speeds, *figure)
    Console(width=120).print(table)
    return found
