"""The Python API: `plan` a program, `load` a plan, `run` it in this process; see docs/api.md.

Everything that the commands do they do through the same functions; this module only accepts what Python has at hand (a
jax function, a path, a module) where the commands take files.  To run in this process a plan needs as many devices as
it names; jax fixes their number when it starts, on CPUs by `use_cpu_devices`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from jaxlib.mlir import ir

from alpa_mlir import foreign, planner
from alpa_mlir.cache import Store, cache_directory
from alpa_mlir.cluster_file import read_cluster
from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.diagnostics import Remark
from alpa_mlir.dialect.plan import check_digest, read_plan
from alpa_mlir.dialect.reading import read_text
from alpa_mlir.lowering import lower
from alpa_mlir.model_file import read_model
from alpa_mlir.models.step import TrainStep
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.tools.plan_summary import PlanSummary, summarize
from alpa_mlir.tools.plan_table import print_table
from alpa_mlir.value_names import name_values

Program: TypeAlias = Callable[..., Any] | TrainStep | ir.Module | str | Path
"""A jax function, jitted or not; a step; a module; or a file with StableHLO in any form."""


@dataclass(frozen=True)
class Planned:
    """A plan: its text, and what the planner remarked.  Printed, it is the table that alpa-mlir-plan prints."""

    text: str
    remarks: tuple[Remark, ...] = ()

    @cached_property
    def summary(self) -> PlanSummary:
        """The plan in figures: stages, devices, predicted seconds and bytes."""
        return summarize(parse_module(self.text, make_context()))

    def save(self, path: str | Path) -> None:
        """Write the plan to a file for alpa-mlir-run."""
        Path(path).write_text(self.text)

    def __str__(self) -> str:
        stream = io.StringIO()
        print_table(self.summary, stream)
        return stream.getvalue()


def use_cpu_devices(count: int) -> None:
    """Let this process have `count` CPU devices; must come before jax is used for anything else."""
    from alpa_mlir.runtime.layout import prepare_environment

    prepare_environment(count)


def plan(
    program: Program,
    cluster: Cluster | str = "cpu",
    *,
    arguments: Sequence[Any] | None = None,
    roles: Sequence[str] | None = None,
    nodes: int = 0,
    devices_per_node: int = 0,
    memory: int = 0,
    **options: Any,
) -> Planned:
    """Plan how to spread a program over a cluster.

    program:   what to plan. A jax function needs `arguments`, a tuple of pytrees of arrays or jax.ShapeDtypeStruct;
               `roles` says what each of them is, "state", "batch" or "constant" (default: what jax.jit donates is
               state, the rest batch).
    cluster:   a preset's name, a TOML file or a Cluster; `nodes`, `devices_per_node`, `memory` change its sizes.
    options:   further fields of `alpa_mlir.planner.PlanOptions`: stages, microbatches, mesh, schedule, explain, …

    Raises `CompileError` where the program or what is asked of it cannot be planned.
    """
    sized = _cluster(cluster).with_sizes(nodes, devices_per_node, memory)
    remarks: list[Remark] = []
    module = _module(program, arguments, roles)
    if options.get("explain"):
        options["explain"] = name_values(module, print_module(module).encode(), options["explain"])
    module = planner.plan(module, planner.PlanOptions(sized, **options), remarks)
    return Planned(print_module(module), tuple(dict.fromkeys(remarks)))


def load(path: str | Path) -> Planned:
    """Read a plan from a file; CompileError where it is none, or was changed."""
    text = read_text(path, "plan")
    module = parse_module(text, make_context(), str(path))
    read_plan(module)
    check_digest(module)
    return Planned(text)


def run(
    planned: Planned | str | Path,
    arguments: Sequence[Any],
    *,
    steps: int = 1,
    platform: str = "auto",
    cache: bool = True,
) -> list[Any]:
    """The results of `@main` after `steps` steps on the same batch, as numpy arrays.

    planned:   a plan or its file.
    arguments: the arrays of `@main`, whole, in order.
    platform:  "cpu", "cuda", or "auto": what jax computes on in this process.
    cache:     whether compiled programs are kept for the next time, where alpa-mlir-run keeps its own.

    Raises `CompileError` for arguments that do not fit and where this process has too few devices.
    """
    from alpa_mlir.runtime.execute import run_plan

    found = planned if isinstance(planned, Planned) else load(planned)
    return list(run_plan(found.text, arguments, steps=steps, platform=platform, store=program_store(cache)))


def program_store(cache: bool) -> Store | None:
    """Where compiled programs are kept; None if they are not."""
    return Store(cache_directory() / "programs") if cache else None


def _module(program: Program, arguments: Sequence[Any] | None, roles: Sequence[str] | None) -> ir.Module:
    if isinstance(program, str | Path):
        return read_model(program, make_context())
    if isinstance(program, ir.Module):
        lowered = program
    elif isinstance(program, TrainStep):
        lowered = lower(program)
    elif arguments is None:
        raise TypeError("a jax function is planned for arguments: plan(function, arguments=(…))")
    else:
        lowered = lower(foreign.make_step(program, tuple(arguments), roles, function_name(program)))
    # The passes want their own context; remarks want to know the lines of the Python source.
    return parse_module(print_module(lowered, locations=True), make_context())


def function_name(function: Callable[..., Any]) -> str:
    """What messages call a function."""
    return str(getattr(function, "__name__", type(function).__name__))


def _cluster(cluster: Cluster | str) -> Cluster:
    return cluster if isinstance(cluster, Cluster) else read_cluster(cluster)
