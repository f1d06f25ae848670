"""All stages of a module, each solved: the link between the problem of one stage and the annotated module."""

from __future__ import annotations

from dataclasses import dataclass

from alpa_mlir.dialect.diagnostics import CompileError, location_text
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.links import mesh_links
from alpa_mlir.passes.intra.annotate import Choices, Place
from alpa_mlir.passes.intra.copies import Operand
from alpa_mlir.passes.intra.graph import StageGraph, build_graph
from alpa_mlir.passes.intra.optimize import Optimum, optimum
from alpa_mlir.passes.intra.program import OpRecord, Program
from alpa_mlir.passes.intra.stage_cost import StageCost, split_seconds
from alpa_mlir.passes.intra.strategies import Enumerator, Strategy, value_shardings


@dataclass(frozen=True)
class StageSpec:
    """A stage to solve: its mesh, its first device, microbatches in flight, bytes of memory per device."""

    mesh: Mesh
    first_device: int
    in_flight: int
    memory: float


@dataclass(frozen=True)
class Solved:
    """The choices for all stages, and the predicted cost and solver steps of each."""

    choices: Choices
    costs: tuple[StageCost, ...]
    steps: tuple[tuple[str, ...], ...]


def solve_stages(
    program: Program,
    specs: tuple[StageSpec, ...],
    cluster: Cluster,
    solver: str,
    given: dict[str, Sharding],
) -> Solved:
    """Solve every stage. CompileError where memory cannot be kept."""
    ops: dict[int, Strategy] = {}
    stages = {op.number: max(op.stage, 0) for op in program.ops}
    slots: dict[str, Place] = {}
    arrivals: dict[tuple[int, str, int, int], Sharding] = {}
    ended: dict[str, Sharding] = {}
    copies: dict[Operand, tuple[Sharding, ...]] = {}
    costs, steps = [], []
    enumerators: dict[object, Enumerator] = {}
    for s, spec in enumerate(specs):
        links = mesh_links(spec.mesh, cluster, spec.first_device)
        if links.content not in enumerators:
            enumerators[links.content] = Enumerator(links, cluster)
        graph = _stage_graph(program, enumerators[links.content], s, spec, given)
        found = _solve_stage(program, graph, s, spec, solver)
        labels = found.labels
        ops |= {number: graph.strategy(node, labels) for number, node in graph.of_op.items()}
        slots |= {name: (s, graph.strategy(node, labels).results[0]) for name, node in graph.of_slot.items()}
        ended |= {name: graph.strategy(node, labels).results[0] for name, node in graph.of_ended.items()}
        for operand, chain in graph.of_copy.items():
            copies[operand] = tuple(graph.strategy(node, labels).results[0] for node in chain)
        for source, node in graph.of_incoming.items():
            arrivals[s, source.slot, source.op, source.index] = graph.strategy(node, labels).results[0]
        costs.append(StageCost(*split_seconds(graph, labels, program), found.peak, True))
        steps.append(found.steps)
    _rest(program, specs, slots, given)
    names = tuple(spec.mesh.name for spec in specs)
    return Solved(Choices(ops, stages, slots, arrivals, ended, copies, names), tuple(costs), tuple(steps))


def _stage_graph(
    program: Program, enumerator: Enumerator, stage: int, spec: StageSpec, given: dict[str, Sharding]
) -> StageGraph:
    inside = lambda op: max(op.stage, 0) == stage  # noqa: E731
    return build_graph(program, enumerator, inside, stage, spec.in_flight, given)


def _solve_stage(program: Program, graph: StageGraph, stage: int, spec: StageSpec, solver: str) -> Optimum:
    if graph.least_usage().max(initial=0.0) > spec.memory:
        raise _too_small(program, graph, stage, spec)
    return optimum(graph, spec.memory, solver)


def _too_small(program: Program, graph: StageGraph, stage: int, spec: StageSpec) -> CompileError:
    """The error for a memory limit below any plan's need, with what is alive at the peak."""
    least = graph.least_usage()
    copies = graph.moments.copies(int(least.argmax()))
    need = [(copies[v] * n.choices.least_held, v) for v, n in enumerate(graph.nodes) if copies[v]]
    largest = sorted(need, key=lambda n: (-n[0], n[1]))[:5]
    notes = [f"alive at the peak: {_words(program, graph, v)}, {size / 1e6:.6g} MB" for size, v in largest]
    where = _location(program, graph, [v for _, v in largest])
    return CompileError(
        f"stage {stage} does not fit in {spec.memory / 1e6:.6g} MB per device on mesh "
        f"{'x'.join(map(str, spec.mesh.shape))}: it needs at least {float(least.max()) / 1e6:.6g} MB",
        where,
        notes,
    )


def _words(program: Program, graph: StageGraph, node: int) -> str:
    source = graph.nodes[node].source
    if source.slot:
        kind = program.slots[source.slot].type
        return f"{source.slot} {kind.dtype}{list(kind.shape)}"
    op: OpRecord = program.ops[source.op]
    kind = op.result_types[source.index]
    return f"result of {op.op.name}, {kind.dtype}{list(kind.shape)}"


def _location(program: Program, graph: StageGraph, nodes: list[int]) -> str:
    found = [graph.nodes[v].source.op for v in nodes if graph.nodes[v].source.op >= 0]
    first = program.ops[found[0]] if found else next(iter(program.ops), None)
    return location_text(first.op.location) if first is not None else "-"


def _rest(program: Program, specs: tuple[StageSpec, ...], slots: dict[str, Place], given: dict[str, Sharding]) -> None:
    """Stored values that no op of their stage uses: split as far as they can be."""
    for name, slot in program.slots.items():
        if name in slots:
            continue
        stage = max(slot.stage, 0)
        mesh = specs[stage].mesh
        options = [given[name]] if name in given else value_shardings(slot.type.shape, mesh)
        slots[name] = (stage, max(options, key=lambda s: mesh.extent(s.axes)))
