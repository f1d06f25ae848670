"""All stages of a module, each solved: the link between the problem of one stage and the annotated module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.links import border_links
from alpa_mlir.passes.intra.annotate import Choices, Place
from alpa_mlir.passes.intra.constraints import Constraint
from alpa_mlir.passes.intra.copies import Operand
from alpa_mlir.passes.intra.graph import StageGraph, build_graph
from alpa_mlir.passes.intra.optimize import Optimum, optimum
from alpa_mlir.passes.intra.program import Program
from alpa_mlir.passes.intra.restrictions import Restrictions, clash_on_value, restrict
from alpa_mlir.passes.intra.rules import Clash
from alpa_mlir.passes.intra.stage_cost import StageCost, split_seconds
from alpa_mlir.passes.intra.strategies import Enumerator, Strategy
from alpa_mlir.passes.intra.too_small import least_bytes, too_small


@dataclass(frozen=True)
class StageSpec:
    """A stage to solve: its mesh, its first device, microbatches in flight, bytes of memory per device."""

    mesh: Mesh
    first_device: int
    in_flight: int
    memory: float


@dataclass(frozen=True, eq=False)
class SolvedStage:
    """The graph of a stage, its optimum, and what a step of it costs."""

    spec: StageSpec
    graph: StageGraph
    found: Optimum
    cost: StageCost


@dataclass(frozen=True)
class Solved:
    """The choices for all stages, and each stage as it was solved."""

    choices: Choices
    stages: tuple[SolvedStage, ...]

    @property
    def costs(self) -> tuple[StageCost, ...]:
        """What a step of each stage costs."""
        return tuple(s.cost for s in self.stages)


def solve_stages(
    program: Program,
    specs: tuple[StageSpec, ...],
    cluster: Cluster,
    solver: str,
    restrictions: Restrictions,
    before: Solved | None = None,
) -> Solved:
    """Solve every stage. CompileError where memory, or what users want, cannot be kept.

    `before`: the same stages as they were solved under other restrictions. Their strategies and the seconds of
    reshards are used again, and what the new restrictions do not touch is not solved again.
    """
    ops: dict[int, Strategy] = {}
    homes = {op.number: max(op.stage, 0) for op in program.ops}
    slots: dict[str, Place] = {}
    arrivals: dict[tuple[int, str, int, int], Sharding] = {}
    ended: dict[str, Sharding] = {}
    copies: dict[Operand, tuple[Sharding, ...]] = {}
    stages: list[SolvedStage] = []
    enumerators = [s.graph.enumerator for s in before.stages] if before else _enumerators(specs, cluster)
    for s, spec in enumerate(specs):
        graph = _stage_graph(program, enumerators[s], s, spec, restrictions)
        if before is not None and graph.signature() == before.stages[s].graph.signature():
            found = before.stages[s].found
        else:
            found = _solve_stage(program, graph, s, spec, solver, restrictions)
        labels = found.labels
        ops |= {number: graph.strategy(node, labels) for number, node in graph.of_op.items()}
        slots |= {name: (s, graph.strategy(node, labels).results[0]) for name, node in graph.of_slot.items()}
        ended |= {name: graph.strategy(node, labels).results[0] for name, node in graph.of_ended.items()}
        for operand, chain in graph.of_copy.items():
            copies[operand] = tuple(graph.strategy(node, labels).results[0] for node in chain)
        for source, node in graph.of_incoming.items():
            arrivals[s, source.slot, source.op, source.index] = graph.strategy(node, labels).results[0]
        cost = StageCost(*split_seconds(graph, labels, program), found.peak, True)
        stages.append(SolvedStage(spec, graph, found, cost))
    _rest(program, enumerators, slots, restrictions)
    names = tuple(spec.mesh.name for spec in specs)
    return Solved(Choices(ops, homes, slots, arrivals, ended, copies, names), tuple(stages))


def _enumerators(specs: tuple[StageSpec, ...], cluster: Cluster) -> list[Enumerator]:
    """The enumerator of each stage; stages on equal devices and links share one."""
    known: dict[object, Enumerator] = {}
    found = []
    for spec in specs:
        links = border_links(spec.mesh, cluster, spec.first_device)
        made = Enumerator(links, cluster.part_of(spec.first_device))
        found.append(known.setdefault(made.content, made))
    return found


def _stage_graph(
    program: Program, enumerator: Enumerator, stage: int, spec: StageSpec, restrictions: Restrictions
) -> StageGraph:
    inside = lambda op: max(op.stage, 0) == stage  # noqa: E731
    return build_graph(program, enumerator, inside, stage, spec.in_flight, restrictions)


def _solve_stage(
    program: Program, graph: StageGraph, stage: int, spec: StageSpec, solver: str, restrictions: Restrictions
) -> Optimum:
    if least_bytes(graph) > spec.memory:
        meshes = [spec.mesh] * (stage + 1)

        def least(constraints: Sequence[Constraint]) -> float:
            kept = restrict(program, meshes, constraints)
            return least_bytes(_stage_graph(program, graph.enumerator, stage, spec, kept))

        raise too_small(program, graph, stage, spec.memory, restrictions.constraints, least)
    return optimum(graph, spec.memory, solver)


def _rest(
    program: Program, enumerators: Sequence[Enumerator], slots: dict[str, Place], restrictions: Restrictions
) -> None:
    """Stored values that no op of their stage uses: split as far as they can be."""
    for name, slot in program.slots.items():
        if name in slots:
            continue
        stage = max(slot.stage, 0)
        mesh = enumerators[stage].mesh
        try:
            choices = enumerators[stage].of_value(slot.type, rules=restrictions.of_slot(name))
        except Clash as e:
            raise clash_on_value(e, name, slot.type, mesh) from None
        options = [s.results[0] for s in choices.strategies]
        slots[name] = (stage, max(options, key=lambda s: mesh.extent(s.axes)))
