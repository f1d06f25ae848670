"""A plan in figures: what `alpa-mlir-plan` prints as tables and writes as JSON, and `alpa-mlir-report` draws.

Everything is read back from the plan itself: `alpa.stages`, `alpa.cost` on functions, the simulated step that follows
from them, and what else was considered (`alpa.considered`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.mesh import meshes_of
from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.dialect.staged import Fragment, PlanMain
from alpa_mlir.dialect.staged_main import read_main
from alpa_mlir.passes.costs.cluster import module_cluster
from alpa_mlir.passes.inter.simulate import Timeline
from alpa_mlir.passes.intra.stage_cost import StageCost, step_seconds
from alpa_mlir.passes.schedule import plan_timeline

COMPUTE = ("product", "reduction", "fused", "moved", "slice")
"""Costs of functions that are no communication (docs/costs.md, C6 and C10 to C12)."""


@dataclass(frozen=True)
class StageSummary:
    """One stage; figures are None where the planner had no reason to compute them.

    `forward_seconds` to `update_seconds` are of one run (what is per submesh stands at its first stage),
    `communication_seconds` the collectives among them, of one microbatch; `memory_bytes` is what the solver kept
    the stage within, `peak_bytes` the simulated peak of its submesh; `costs` seconds of a step by what takes them.
    """

    stage: int
    layers: tuple[int, int]
    devices: tuple[int, ...]
    mesh: tuple[int, ...]
    submesh: str
    microbatch_seconds: float | None
    step_seconds: float | None
    memory_bytes: int | None
    peak_bytes: int | None
    memory_limit: int | None
    forward_seconds: float | None
    backward_seconds: float | None
    weight_seconds: float | None
    update_seconds: float | None
    communication_seconds: float | None
    costs: dict[str, float] = field(default_factory=dict)
    searched_microbatch_seconds: float | None = None
    searched_step_seconds: float | None = None


@dataclass(frozen=True)
class Alternative:
    """A setting that was considered: its estimated seconds, bytes per device, or why it cannot be."""

    microbatches: int
    schedule: str
    remat: str
    seconds: float | None
    bytes: int | None
    error: str | None


@dataclass(frozen=True)
class PlanSummary:
    """The whole plan: `step_seconds` is the predicted time of one step, `bubble` the idle part of its pipeline.

    `transfer_bytes` cross between submeshes in a step; `costs` are device-seconds of a step by what takes them
    (means over submeshes; `idle` is the rest of the step).
    """

    cluster: str
    microbatches: int
    schedule: str
    remat: tuple[int, ...]
    step_seconds: float | None
    bubble: float | None
    digest: str
    memory_limit: int | None
    transfer_bytes: float | None
    stages: tuple[StageSummary, ...]
    costs: dict[str, float] = field(default_factory=dict)
    considered: tuple[Alternative, ...] = ()
    searched_seconds: float | None = None
    """The step by the search's own formula, Σ t_i + max_j ((M−1)·t_j + u_j), with the seconds it reckoned with."""
    solved_seconds: float | None = None
    """The same formula with each stage solved exactly, under the constraints, as `alpa-shard` did."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summarize(module: ir.Module, timeline: Timeline | None = None) -> PlanSummary:
    """Read the figures of a plan; `timeline` is its simulated step, where that is known already."""
    timeline = timeline or plan_timeline(module)
    attributes = module.operation.attributes
    main = read_main(module)
    meshes = meshes_of(module)
    by_function = _function_costs(module)
    known = module_cluster(module)
    stages = []
    for number, entry in enumerate(stage_entries(module)):
        layers = tuple(int(k) for k in ir.DenseI64ArrayAttr(entry["layers"])) if "layers" in entry else (0, 0)
        submesh = str(ir.StringAttr(entry["mesh"]).value)
        devices = tuple(int(d) for d in ir.DenseI64ArrayAttr(entry["devices"]))
        costs, talking = _stage_costs(main, number, by_function)
        stages.append(
            StageSummary(
                number,
                (layers[0], layers[-1]),
                devices,
                meshes[submesh].shape,
                submesh,
                _float(entry, "microbatch_seconds"),
                _float(entry, "step_seconds"),
                _int(entry, "memory_bytes"),
                _int(entry, "peak_bytes"),
                known.part_of(devices[0]).memory if known is not None else None,
                _float(entry, "forward_seconds"),
                _float(entry, "backward_seconds"),
                _float(entry, "weight_seconds"),
                _float(entry, "update_seconds"),
                talking if by_function else None,
                costs,
                _float(entry, "searched_microbatch_seconds"),
                _float(entry, "searched_step_seconds"),
            )
        )
    return PlanSummary(
        known.name if known is not None else "",
        main.microbatches,
        timeline.kind if timeline is not None else _kind(module),
        _numbers(attributes[alpa.REMAT]) if alpa.REMAT in attributes else (),
        float(ir.FloatAttr(attributes[alpa.COST]).value) if alpa.COST in attributes else None,
        timeline.bubble if timeline is not None else None,
        alpa.get_string(module.operation, alpa.DIGEST) or "",
        known.memory if known is not None else None,
        sum(m.bytes for m in timeline.moves) if timeline is not None else None,
        tuple(stages),
        _plan_costs(stages, timeline),
        _considered(module),
        _formula([(s.searched_microbatch_seconds, s.searched_step_seconds) for s in stages], main.microbatches),
        _formula([(s.microbatch_seconds, s.step_seconds) for s in stages], main.microbatches),
    )


def _formula(stages: Sequence[tuple[float | None, float | None]], microbatches: int) -> float | None:
    """The search's objective (docs/stages.md); None where a stage does not say its seconds."""
    known = [StageCost(t, u, 0.0, True) for t, u in stages if t is not None and u is not None]
    return step_seconds(known, microbatches) if known and len(known) == len(stages) else None


def _kind(module: ir.Module) -> str:
    ops = (view.operation for view in module.body.operations)
    return next((alpa.get_string(op, "kind") or "" for op in ops if op.name == "alpa.schedule"), "")


def _numbers(attribute: ir.Attribute) -> tuple[int, ...]:
    return tuple(int(n) for n in ir.DenseI64ArrayAttr(attribute))


def _float(entry: ir.DictAttr, name: str) -> float | None:
    return float(ir.FloatAttr(entry[name]).value) if name in entry else None


def _int(entry: ir.DictAttr, name: str) -> int | None:
    return int(ir.IntegerAttr(entry[name]).value) if name in entry else None


def _function_costs(module: ir.Module) -> dict[str, dict[str, float]]:
    """Seconds of one run of each stage function by what takes them; empty where the plan was not priced."""
    found = {}
    for name, function in functions(module).items():
        if alpa.COST in function.attributes:
            parts = ir.DictAttr(ir.DictAttr(function.attributes[alpa.COST])["seconds"])
            found[name] = {parts[i].name: float(ir.FloatAttr(parts[i].attr).value) for i in range(len(parts))}
    return found


def _stage_costs(
    main: PlanMain, stage: int, by_function: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, float], float]:
    """Seconds of a step by what takes them, and seconds of collectives of one microbatch."""
    costs: dict[str, float] = {}
    talking = 0.0
    for call in (s for s in main.steps if isinstance(s, Fragment) and s.stage == stage):
        often = main.microbatches if main.runs_per_microbatch(call) else 1
        for name, seconds in by_function.get(call.function, {}).items():
            costs[name] = costs.get(name, 0.0) + often * seconds
            talking += seconds if name not in COMPUTE and main.runs_per_microbatch(call) else 0.0
    return dict(sorted(costs.items(), key=lambda item: (-item[1], item[0]))), talking


def _plan_costs(stages: Sequence[StageSummary], timeline: Timeline | None) -> dict[str, float]:
    if timeline is None:
        return {}
    lanes = len({s.submesh for s in stages})
    total: dict[str, float] = {}
    for stage in stages:
        for name, seconds in stage.costs.items():
            total[name] = total.get(name, 0.0) + seconds / lanes
    collected = sum(s.finish - s.start for s in timeline.spans if s.kind == "accumulate") / lanes
    if collected:
        total["accumulate"] = collected
    total["idle"] = max(0.0, timeline.makespan - sum(total.values()))
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _considered(module: ir.Module) -> tuple[Alternative, ...]:
    attributes = module.operation.attributes
    if alpa.CONSIDERED not in attributes:
        return ()
    found = []
    for entry in map(ir.DictAttr, ir.ArrayAttr(attributes[alpa.CONSIDERED])):
        error = ir.StringAttr(entry["error"]).value if "error" in entry else None
        kind, remat = (ir.StringAttr(entry[name]).value for name in ("schedule", "remat"))
        count = int(ir.IntegerAttr(entry["microbatches"]).value)
        found.append(Alternative(count, kind, remat, _float(entry, "seconds"), _int(entry, "bytes"), error))
    return tuple(found)


def best_alternatives(summary: PlanSummary) -> list[Alternative]:
    """The quickest microbatch count of each schedule and rematerialisation, quickest first, what cannot be last."""
    best: dict[tuple[str, str], Alternative] = {}
    for other in summary.considered:
        key = (other.schedule, other.remat)
        if key not in best or _rank(other) < _rank(best[key]):
            best[key] = other
    return sorted(best.values(), key=_rank)


def _rank(other: Alternative) -> tuple[bool, float, int]:
    unknown = other.seconds is None
    return (other.error is not None, float("inf") if unknown else other.seconds or 0.0, other.microbatches)
