"""Which passes make a plan, with which options: as the user decides (`PlanOptions`), in the texts of pipelines.

normalize ─ microbatch ─ layers ─ stages ─ shard ─ split ─ price ─ localize ─ route ─ schedule
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.plan import stage_entries
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.inter.dataflow import value_bytes
from alpa_mlir.passes.inter.meshes import MESH_AXES
from alpa_mlir.passes.inter.schedules import KINDS, SPLIT_BACKWARD
from alpa_mlir.passes.settings import AUTO, NONE, PARTLY, SIMPLE, Setting
from alpa_mlir.passes.unroll import UNROLL, UNROLL_LAYERS

SCHEDULES = (AUTO, *KINDS)
PARTITIONERS = ("local", "xla")
SEVERAL, STAGES = 8, 8
"""Clusters of at least SEVERAL nodes are expected to get STAGES stages or more, where no number is given: layers are
made for so many."""
LARGE = 16
"""On clusters of at least LARGE nodes interleaved stages may have the meshes only of other stages found."""
FEW = 16
"""On so few devices layers that are too many to be unrolled need no more groups: planning takes half the time."""
TIGHT = 0.4
"""The part of all devices' memory beyond which the program's state makes memory tight."""
EXPLAINED = 20
"""How many decisions of a stage are explained at most."""


@dataclass(frozen=True)
class PlanOptions:
    """What the user decides; everything else is the planner's. 0 and "" mean: choose.

    mesh:         logical mesh such as "2x4": one stage on all devices, no search over stages.
    microbatches, stages, layers: numbers, or 0. chunks: stages that share a submesh (interleaved).
    schedule:     one of SCHEDULES. partitioner: who makes one device's program of a sharded stage.
    remat:        auto, none, full, or numbers of layers such as "0-3,5" whose forward ops run again.
    batch_args, state_args: argument numbers such as "3,5-7" where the program does not say its roles.
    constrain:    shardings that must be, such as "arg0=[{x},{}]; y=tensor" (docs/constraints.md).
    explain:      values or ops whose decisions are explained in remarks; what_if: constraints to price, cases
                  separated by "|" (docs/explain.md). Neither changes the plan.
    axes:         most axes of a stage's logical mesh that are searched: 1, 2 or 3.
    unroll:       most ops that a loop with a known number of rounds may become; 0: loops stay one unit.
    unroll_layers: most layers that a loop over layers is unrolled into; with more it becomes loops over groups of
                  them, each in one stage (0: always unrolled).
    """

    cluster: Cluster
    mesh: str = ""
    microbatches: int = 0
    stages: int = 0
    layers: int = 0
    schedule: str = "auto"
    partitioner: str = "local"
    batch_args: str = ""
    state_args: str = ""
    allow_per_microbatch_statistics: bool = False
    solver: str = "highs"
    remat: str = AUTO
    chunks: int = 0
    constrain: str = ""
    explain: str = ""
    what_if: str = ""
    unroll: int = UNROLL
    axes: int = MESH_AXES
    unstack: bool = True
    unroll_layers: int = UNROLL_LAYERS


def normalize(options: PlanOptions) -> str:
    """The pass from level 0 to level 1."""
    roles = {"batch_args": options.batch_args, "state_args": options.state_args}
    unroll = {} if options.unroll == UNROLL else {"unroll": str(options.unroll)}
    if options.unroll_layers != UNROLL_LAYERS:
        unroll["unroll_layers"] = str(options.unroll_layers)
    if options.cluster.device_count <= FEW and max(options.layers, 2 * options.stages) <= FEW:
        unroll["groups"] = str(FEW)
    return _text("alpa-normalize", **roles, **unroll)


def unstack(options: PlanOptions) -> list[str]:
    """The passes that follow on level 1."""
    return ["alpa-unstack"] if options.unstack else []


def expected_stages(options: PlanOptions, normal: ir.Module) -> int:
    """The number of stages to make layers for, read from the whole level-1 program; 0: not known.

    The user's number where there is one. Else STAGES on clusters of SEVERAL nodes, and where the program's state is
    more than TIGHT of the bytes of memory of all devices together: what it leaves, even split over all of them, is not
    enough for gradients, their sums and the values of many microbatches. Layers run again as a whole, and stages are
    cut between layers, so smaller layers let memory be used to the end there. Elsewhere they seldom help.
    """
    given = len(stage_entries(normal)) if alpa.STAGES in normal.operation.attributes else 0
    if options.stages or given:
        return options.stages or given
    cluster = options.cluster
    memory = sum(float(part.memory) * part.device_count for part in cluster.parts)
    return STAGES if cluster.nodes >= SEVERAL or _state_bytes(normal) > TIGHT * memory else 0


def _state_bytes(normal: ir.Module) -> float:
    """Bytes of the whole state of a level-1 program: parameters, their master copies, the optimizer's moments."""
    main = functions(normal)["main"]
    of_state = ir.StringAttr.get("state", normal.context)
    arguments = zip(main.regions[0].blocks[0].arguments, argument_attributes(main), strict=True)
    return float(sum(value_bytes(a) for a, entry in arguments if entry.get(alpa.ROLE) == of_state))


def until_layers(options: PlanOptions, expected: int, setting: Setting) -> list[str]:
    """The passes from level 1 to level 3, where `expected` stages are (0: not known).

    Layers of which several make a stage are cut evenly; others where the program repeats itself, if it does.
    """
    allowed = options.allow_per_microbatch_statistics
    return [
        _text("alpa-microbatch", count=setting.microbatches, allow_per_microbatch_statistics=allowed),
        _text("alpa-layers", count=options.layers, stages=expected, even=bool(options.layers or expected)),
    ]


def until_stages(options: PlanOptions, setting: Setting, meshes: str, rough: bool, memory: float = 0.0) -> list[str]:
    """The passes from level 3 to level 4; `meshes`: the logical meshes to search (empty: all)."""
    asked = options.schedule if options.schedule != AUTO else setting.flying or SIMPLE
    kind = "interleaved" if setting.interleaved else asked
    remat = [_text("alpa-remat", layers=setting.remat)] if setting.remat not in (NONE, PARTLY) else []
    return [
        *remat,
        _text(
            "alpa-stages",
            stages=options.stages,
            chunks=options.chunks if setting.interleaved else 0,
            mesh=options.mesh,
            memory=_bytes(memory),
            axes=options.axes if options.axes != MESH_AXES else 0,
            schedule=kind,
            solver=options.solver,
            whole_sums=options.partitioner == "xla",
            constrain=options.constrain,
            meshes=meshes,
            rough=rough,
            remat=setting.remat == PARTLY,
        ),
    ]


def until_price(options: PlanOptions, schedule: str, memory: Sequence[float] = ()) -> list[str]:
    """The passes from level 4 to level 6, up to where it is known what the step needs; `memory`: bytes per device of
    each submesh (empty: what is there)."""
    return [
        _text(
            "alpa-shard",
            constrain=options.constrain,
            memory=",".join(map(_bytes, dict.fromkeys(memory) if len(set(memory)) == 1 else memory)),
            solver=options.solver,
            schedule=schedule,
            whole_sums=options.partitioner != "local",
            explain=options.explain,
            most=EXPLAINED if options.explain else 0,
            what_if=options.what_if,
        ),
        _text("alpa-split", weight_apart=schedule in SPLIT_BACKWARD),
        "alpa-price",
    ]


def rest(options: PlanOptions, schedule: str) -> list[str]:
    """The passes from there to the plan."""
    made = "alpa-localize" if options.partitioner == "local" else "alpa-roll"
    return [made, "alpa-route", _text("alpa-schedule", kind=schedule)]


def _bytes(memory: float) -> str:
    """The option's text; where less than nothing is left, a byte, in which nothing fits."""
    return f"{max(1, int(memory))}B" if memory else ""


def _text(name: str, **options: str | int | bool) -> str:
    """`name{a=1 b="x y"}` of the options that are set."""
    written = []
    for key, value in options.items():
        if value:
            shown = "true" if value is True else str(value)
            written.append(f"{key.replace('_', '-')}={{{shown}}}")
    return name + (f"{{{' '.join(written)}}}" if written else "")
