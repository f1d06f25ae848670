"""What to run, and how: the options of `alpa-mlir-run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from jaxlib.mlir import ir

from alpa_mlir.dialect.plan import Plan

if TYPE_CHECKING:
    from alpa_mlir.runtime.compiled import Store


@dataclass(frozen=True)
class Job:
    """What to run.  `reference` reads the original program of a plan (on rank 0); `tolerance` None is the default.

    `timeout` is how long an instruction may take, `heartbeat` how long a rank may be silent; 0: for ever.
    `checkpoint` is a folder that gets one every `checkpoint_every` steps (0: none but the last), of which
    `checkpoint_keep` stay (0: all); `restore` is where to begin.  `seed` None is that of the checkpoint, or 0.
    `check` raises `CompileError` for a plan with instruction lists that cannot be executed (rank 0 calls it).
    `trace` is a file for what ran when, beside the events that `predicted` gives for one step of the plan; `profile`
    prints a table of both.  `store` keeps what XLA compiled, for the next run.
    `platform` and `transport` are as `platform.choose` takes them, `bind_cores` as `binding.bind_cores` does.
    """

    plan: str
    steps: int = 1
    seed: int | None = None
    inputs: str | None = None
    outputs: str | None = None
    reference: Callable[[ir.Module], ir.Module] | None = None
    reference_name: str = "-"
    tolerance: float | None = None
    timeout: float = 600.0
    heartbeat: float = 5.0
    checkpoint: str | None = None
    checkpoint_every: int = 0
    checkpoint_keep: int = 0
    restore: str | None = None
    trace: str | None = None
    profile: bool = False
    check: Callable[[Plan], None] | None = None
    predicted: Callable[[ir.Module], Sequence[Mapping[str, Any]]] | None = None
    store: Store | None = None
    platform: str = "auto"
    transport: str = "auto"
    bind_cores: str = "no"

    def options(self) -> dict[str, object]:
        """What must be the same on all ranks, by name; the plan itself is compared by content."""
        own = ("plan", "reference", "check", "predicted", "store")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
