"""`alpa-explain`: why each decision is as it is, and what if something else held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.passes.registry import Pass, option, register
from alpa_mlir.passes.shard import NAMES, Shard

BEFORE = ("source", "normal", "microbatched", "layered", "staged")
"""Levels without shardings."""


@register
@dataclass(frozen=True)
class Explain(Pass):
    """Remark at every op the strategy that `alpa-shard` chooses, its cost terms, the runner-up and the difference.

    IR before and after: what `alpa-shard` takes, any of levels 1 to 4; nothing changes. Terms are seconds of a step:
    the local piece, the collectives that end its sums, the reshards of operands and results. The runner-up is the
    strategy of the best plan without the chosen one, other decisions made again. `what-if` adds constraints and
    solves again, from the same strategies and costs; stages that the constraints do not touch are not solved again.
    """

    name: ClassVar[str] = "alpa-explain"
    only: str = option("*", f"which decisions: {NAMES}")
    most: int = option(20, "only so many decisions of each stage, the dearest; 0: all")
    what_if: str = option("", "constraints to add; several cases are separated by | (docs/constraints.md)")
    mesh: str = option("", "as in alpa-shard")
    cluster: str = option("", "as in alpa-shard")
    memory: str = option("", "as in alpa-shard")
    constrain: str = option("", "as in alpa-shard")
    solver: str = option("highs", "as in alpa-shard")
    schedule: str = option("1f1b", "as in alpa-shard")
    whole_sums: bool = option(False, "as in alpa-shard")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        if alpa.get_string(module.operation, alpa.LEVEL) not in (None, *BEFORE):
            raise CompileError(
                "the shardings are written already: run alpa-explain before alpa-shard, or alpa-shard with explain=",
                module.operation.location,
            )
        copy = clone_module(module)
        shard = Shard(
            self.mesh,
            self.cluster,
            self.memory,
            self.constrain,
            self.solver,
            self.schedule,
            self.whole_sums,
            explain=self.only,
            most=self.most,
            what_if=self.what_if,
        )
        shard.speak(shard.decide(copy, remarks), remarks)
