"""What stages would cost, asked for lazily: the tables of the stage dynamic program.

An entry (layers i … j, submesh option m, q microbatches in flight) is an optimum of the intra-operator program:
expensive. So the dynamic program first runs on *lower bounds*; the entries of the partition it finds are
then evaluated, which gives a partition of known cost, and it runs again, until what it finds on the bounds is
not cheaper (by more than GAP) than the best partition known. That is then the optimum over the full tables.

Bounds: what layers i … j cost inside a stage is at least what i … k and k+1 … j cost, and a
single layer costs at least its products at full speed on all devices.  From an evaluated stage the transfers
over its borders, which a longer stage would not pay, are taken off first.  What does not fit in
memory does not fit with more layers or more microbatches in flight either.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
from jaxlib.mlir import ir
from numpy.typing import NDArray

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.links import mesh_links
from alpa_mlir.passes.inter.dataflow import Dataflow, read_dataflow
from alpa_mlir.passes.inter.dp import Partition, StageChoice, StageTables, Table, partition_layers
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.intra.stage_cost import StageCost, StageProfiler
from alpa_mlir.passes.intra.stage_parts import StageParts

GAP = 1e-3
"""The search ends when the partition found costs at most this part more than the best possible one."""

Entry = tuple[int, int, int, int]
"""(q-1, first layer, last layer, option)."""


def submesh_shapes(cluster: Cluster) -> tuple[tuple[int, ...], ...]:
    """The logical mesh shapes on offer, by number of devices.

    Within a node a chain of sizes each of which divides the next (1, 2, 4, 8 of 8; 1, 2, 6 of 6), so that
    any choice of them that uses all devices can be packed into the nodes; beyond it 2, 3, … whole nodes.
    Each as one axis and as products of two; across nodes the second axis is a node's devices.
    """
    shapes: list[tuple[int, ...]] = []
    for n in node_sizes(cluster.devices_per_node):
        shapes.append((n,))
        shapes.extend((a, n // a) for a in range(2, int(n**0.5) + 1) if n % a == 0)
    for k in range(2, cluster.nodes + 1):
        shapes.append((k * cluster.devices_per_node,))
        if cluster.devices_per_node > 1:
            shapes.append((k, cluster.devices_per_node))
    return tuple(shapes)


def node_sizes(devices: int) -> list[int]:
    """1 = d1 | d2 | … | devices, each the previous times the smallest prime factor left."""
    sizes = [1]
    while sizes[-1] < devices:
        rest = devices // sizes[-1]
        sizes.append(sizes[-1] * next(p for p in range(2, rest + 1) if rest % p == 0))
    return sizes


def count_layers(module: ir.Module) -> int:
    """Number of layers of a level-3 module: the highest `alpa.layer` of @microbatch plus one."""
    body = functions(module)["microbatch"].regions[0].blocks[0]
    return 1 + max((alpa.get_int(op, alpa.LAYER) or 0 for op in body.operations), default=0)


@dataclass(frozen=True)
class InFlight:
    """How many microbatches a stage with s stages from itself to the end holds at once."""

    schedule: str
    microbatches: int

    def depth(self, stages: int) -> int:
        """Rows that tables for at most `stages` stages need."""
        return min(stages, self.microbatches) if self.schedule == "1f1b" else 1

    def at(self, stages_left: int) -> int:
        """Microbatches in flight."""
        if self.schedule == "gpipe":
            return self.microbatches
        return 1 if self.schedule == "inference" else min(stages_left, self.microbatches)


@dataclass
class StageSearch:
    """The search for stages of one module on one cluster. `memory`: bytes per device, 0: the cluster's."""

    module: ir.Module
    cluster: Cluster
    in_flight: InFlight
    memory: float = 0.0
    solver: str = "highs"
    whole_sums: bool = False
    evaluated: dict[Entry, StageCost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        microbatches = self.in_flight.microbatches
        self.profiler = StageProfiler(self.module, self.cluster, microbatches, self.solver, self.whole_sums)
        self.shapes = submesh_shapes(self.cluster)
        self.layers = count_layers(self.module)
        flows = {name: read_dataflow(f) for name, f in functions(self.module).items() if name != "main"}
        self.repeated = _Borders(self, [flows["microbatch"]])
        self.once = _Borders(self, [f for name, f in flows.items() if name != "microbatch"])

    def run(self, stages: list[int]) -> Partition:
        """The cheapest partition (up to GAP) into one of the given numbers of stages; CompileError where none fits."""
        depth = self.in_flight.depth(max(stages))
        impossible = np.zeros((depth, self.layers, self.layers, len(self.shapes)), dtype=bool)
        best: Partition | None = None
        while True:
            found = partition_layers(self._tables(impossible), (self.cluster.device_count,), stages)
            if found is None and best is None:
                raise self._nothing_fits(stages)
            if best is not None and (found is None or found.cost >= (1 - GAP) * best.cost):
                return best
            assert found is not None
            for choice in found.stages:
                self._evaluate(choice, impossible)
            known = self._actual(found)
            if known is not None and (best is None or known.cost < best.cost):
                best = known

    def cost_of(self, choice: StageChoice) -> StageCost:
        """The cost of a stage of a partition that `run` returned."""
        return self.evaluated[_entry(choice)]

    def parts_of(self, choice: StageChoice) -> StageParts:
        """The same stage taken apart."""
        layers, mesh = (choice.first, choice.last), self.mesh(choice.option)
        cost = self.cost_of(choice)
        alone = self.profiler.cost(layers, mesh, 1, self.memory)
        flying = 1 if cost == alone else self.in_flight.at(choice.in_flight)
        return self.profiler.parts(layers, mesh, flying, self.memory)

    def _actual(self, found: Partition) -> Partition | None:
        """The same partition with its true cost; None where it does not fit."""
        costs = [self.cost_of(c) for c in found.stages]
        if not all(c.feasible for c in costs):
            return None
        waits = self.in_flight.microbatches - 1
        bottleneck = max(waits * c.microbatch_seconds + c.step_seconds for c in costs)
        return replace(found, latency=sum(c.microbatch_seconds for c in costs), bottleneck=bottleneck)

    def mesh(self, option: int, name: str = "stage") -> Mesh:
        """The logical mesh of an option."""
        return Mesh.from_shape(name, self.shapes[option])

    def _evaluate(self, choice: StageChoice, impossible: NDArray[np.bool_]) -> None:
        """Ask for the cost of an entry, once.

        A solution that needs m bytes with one microbatch in flight needs at most q·m with q: where that fits, it is
        the optimum for q as well.
        """
        if _entry(choice) in self.evaluated:
            return
        layers, mesh = (choice.first, choice.last), self.mesh(choice.option)
        in_flight = self.in_flight.at(choice.in_flight)
        cost = self.profiler.cost(layers, mesh, 1, self.memory)
        if cost.feasible:
            self.repeated.learn(choice, cost.microbatch_seconds)
            self.once.learn(choice, cost.step_seconds)
            if in_flight * cost.memory_bytes > (self.memory or self.cluster.memory):
                cost = self.profiler.cost(layers, mesh, in_flight, self.memory)
        self.evaluated[_entry(choice)] = cost
        if not cost.feasible:
            impossible[choice.in_flight - 1 :, : choice.first + 1, choice.last :, choice.option] = True

    def _tables(self, impossible: NDArray[np.bool_]) -> StageTables:
        depth = impossible.shape[0]
        latency = np.repeat(self.repeated.bounds()[None], depth, axis=0)
        update = np.repeat(self.once.bounds()[None], depth, axis=0)
        for entry, cost in self.evaluated.items():
            if entry[0] < depth and cost.feasible:
                latency[entry], update[entry] = cost.microbatch_seconds, cost.step_seconds
        latency[impossible] = inf
        bottleneck = (self.in_flight.microbatches - 1) * np.where(impossible, 0.0, latency) + update
        return StageTables(latency, bottleneck, tuple((self.mesh(m).device_count,) for m in range(len(self.shapes))))

    def _nothing_fits(self, stages: list[int]) -> CompileError:
        largest = [c.memory_bytes for c in self.evaluated.values() if not c.feasible]
        if not largest:
            return CompileError(
                f"the {self.cluster.device_count} devices cannot be shared out to {stages[0]} stages: a stage gets "
                f"{', '.join(str(n) for n in node_sizes(self.cluster.devices_per_node))} devices or whole nodes",
                self.module.operation.location,
            )
        limit = self.memory or self.cluster.memory
        return DoesNotFit(
            f"no plan fits in {limit / 1e6:.6g} MB per device: the smallest stage that was too large needs at least "
            f"{min(largest) / 1e6:.6g} MB (more devices, more microbatches or more memory would help)",
            self.module.operation.location,
        )


def _entry(choice: StageChoice) -> Entry:
    return (choice.in_flight - 1, choice.first, choice.last, choice.option)


class _Borders:
    """Lower bounds of one of the two costs of a stage, and what transfers over layer borders cost at most."""

    def __init__(self, search: StageSearch, flows: list[Dataflow]) -> None:
        layers, shapes = search.layers, search.shapes
        self.inner: Table = np.zeros((layers, layers, len(shapes)))
        self.known: Table = np.zeros((layers, layers, len(shapes)))
        self.border: Table = np.zeros((layers + 1, len(shapes)))
        meshes = [search.mesh(m) for m in range(len(shapes))]
        for flow in flows:
            owned = [alpa.get_int(op, alpa.LAYER) or 0 for op in flow.ops]
            products = np.zeros(layers)
            for op, layer in enumerate(owned):
                products[layer] += flow.flops[op] if flow.heavy[op] else 0.0
            fastest = search.cluster.efficiency * max(speed for _, speed in search.cluster.flops)
            for m, mesh in enumerate(meshes):
                diagonal = np.arange(layers)
                self.inner[diagonal, diagonal, m] += products / (fastest * mesh.device_count)
            self._add_borders(flow, owned, search)
        self.dirty = True

    def _add_borders(self, flow: Dataflow, owned: list[int], search: StageSearch) -> None:
        crossing = np.zeros((len(self.border) + 1, 2))
        for value, definition in enumerate(flow.definition):
            if definition >= 0:
                places = [owned[definition], *(owned[u] for u in flow.uses[value])]
                crossing[min(places) + 1] += (1, flow.nbytes[value])
                crossing[max(places) + 1] -= (1, flow.nbytes[value])
        count, size = crossing.cumsum(axis=0)[:-1].T
        for m in range(len(search.shapes)):
            links = mesh_links(search.mesh(m), search.cluster)
            slowest = 1 / links.outside.bandwidth + 1 / min(k.bandwidth for k in links.axes)
            self.border[:, m] += count * links.outside.start + size * slowest

    def learn(self, choice: StageChoice, seconds: float) -> None:
        """Take an evaluated stage into account."""
        i, j, m = choice.first, choice.last, choice.option
        self.known[i, j, m] = seconds
        net = seconds - self.border[i, m] - self.border[j + 1, m]
        if net > self.inner[i, j, m]:
            self.inner[i, j, m] = net
            self.dirty = True

    def bounds(self) -> Table:
        """`[i, j, m]`: at least this many seconds, closed under splitting a range of layers in two."""
        if self.dirty:
            for width in range(1, len(self.inner)):
                for i in range(len(self.inner) - width):
                    j = i + width
                    pairs = self.inner[i, i:j] + np.stack([self.inner[k + 1, j] for k in range(i, j)])
                    self.inner[i, j] = np.maximum(self.inner[i, j], pairs.max(axis=0))
            self.dirty = False
        return np.maximum(self.inner, self.known)
