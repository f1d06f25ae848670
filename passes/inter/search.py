"""The search for stages: from the partition that prices find (`tables.py`) to one of exact stages.

An entry (layers i … j, submesh option m, q microbatches in flight) is an optimum of the intra-operator program:
expensive. So the dynamic program runs on prices (`pricing.py`), which are cheap, and the stages of the partition
that it finds are then priced exactly. Their entries are corrected and it runs again, until it finds a partition of
exact stages only. Its cost is exact; it is the optimum up to the error of the prices of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from jaxlib.mlir import ir

from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.passes.costs.cluster import Cluster
from alpa_mlir.passes.costs.links import mesh_links
from alpa_mlir.passes.inter.dp import Partition, StageChoice
from alpa_mlir.passes.inter.in_flight import InFlight
from alpa_mlir.passes.inter.layout import read_layout
from alpa_mlir.passes.inter.meshes import MESH_AXES, idle_axes, node_sizes, pack, submesh_shapes
from alpa_mlir.passes.inter.partial_remat import layers_again, offer_mixtures
from alpa_mlir.passes.inter.pricing import Pricer, RangePrices
from alpa_mlir.passes.inter.schedules import EAGER
from alpa_mlir.passes.inter.space import Entry
from alpa_mlir.passes.inter.tables import Tables, entry
from alpa_mlir.passes.intra.constraints import AxisMode
from alpa_mlir.passes.intra.problem import DoesNotFit, StateDoesNotFit
from alpa_mlir.passes.intra.stage_cost import StageCost, StageProfiler
from alpa_mlir.passes.intra.stage_parts import StageParts
from alpa_mlir.passes.intra.strategies import Enumerator
from alpa_mlir.passes.intra.words import needed_text

SHORT, ENOUGH = 0.1, 0.01
"""The parts by which a step takes longer where memory is called short, and where it is ample."""
FURTHER = (2, 4, 8, 16, 32, 64, 128)
"""How many times as many microbatches are looked at then: the first NEAR of them, and as many as it takes until memory
is ample."""
NEAR = 3


@dataclass
class StageSearch:
    """The search for stages of one module on one cluster. `memory`: bytes per device, 0: the cluster's.

    `only`: the logical meshes to search (empty: all without idle devices); where they make no partition, all are.
    `rough`: the partition that prices find is the result, its stages cost their prices.
    """

    module: ir.Module
    cluster: Cluster
    in_flight: InFlight
    memory: float = 0.0
    solver: str = "highs"
    whole_sums: bool = False
    only: tuple[tuple[int, ...], ...] = ()
    rough: bool = False
    axes: int = MESH_AXES
    """The most axes that a logical mesh may have."""
    uses: tuple[AxisMode, ...] = ()
    """What users want of the axes of every stage's mesh."""
    fewest: int = 1
    """The number of stages at least: each leaves devices for the others."""
    kept: StageSearch | None = None
    """With `rough`, where all layers of the module run again: a search of the same layers none of which do. Then as
    few of each stage run again as memory allows."""
    useful: tuple[tuple[int, ...], ...] = ()
    """The logical meshes that were the best of their size for some range that a good partition may have."""
    floor: float = 0.0
    """Seconds of the best partition if memory were no object; `eager`: and stages did not wait for transfers."""
    eager: float = 0.0
    ahead: tuple[float, ...] = ()
    """With `rough`, where memory makes it take SHORT longer: seconds with FURTHER times as many microbatches."""
    evaluated: dict[Entry, StageCost] = field(default_factory=dict)
    estimates: dict[Entry, RangePrices] = field(default_factory=dict)
    """With `rough`: the prices of the stages found."""

    def __post_init__(self) -> None:
        microbatches = self.in_flight.microbatches
        self.profiler = StageProfiler(self.module, self.cluster, microbatches, self.solver, self.whole_sums, self.uses)
        most = self.cluster.device_count - self.fewest + 1
        on_offer = [(shape, part) for part in self.cluster.parts for shape in submesh_shapes(part, self.axes)]
        offered = [(shape, part) for shape, part in on_offer if prod(shape) <= most]
        self.shapes = tuple(shape for shape, _ in offered)
        self.groups = tuple(part for _, part in offered)
        """The equal devices that each option is of."""
        self.layout = read_layout(self.module)
        counts = self.profiler.program.kind_counts(self.layout.times.tolist())
        busy = [m for m, shape in enumerate(self.shapes) if not idle_axes(shape, counts)]
        wanted = [m for m, shape in enumerate(self.shapes) if shape in self.only]
        self.options = wanted or busy or list(range(len(self.shapes)))
        """The submesh options that are searched: those without idle devices, unless no partition is made of them."""
        everything = (0, self.layout.layers - 1)
        self.pricer = Pricer(self.profiler.program, self.layout, lambda: self.profiler.sketch(everything))
        if self.uses:
            self._heed_uses()

    def _heed_uses(self) -> None:
        """Leave out the options whose mesh lacks an axis that users want used (unless all do), and those where what
        they want cannot hold together."""
        wanted, clashes = {use.axis for use in self.uses}, list[CompileError]()
        having = [m for m in self.options if wanted <= set(self.mesh(m).axis_names)]
        self.options = having or self.options
        for option in list(self.options):
            links = mesh_links(self.mesh(option), self.cluster, self.groups[option].first)
            try:
                self.pricer.skeleton.sketch.choices(Enumerator(links, self.groups[option]))
            except CompileError as clash:
                clashes.append(clash)
                self.options.remove(option)
        if not self.options:
            raise clashes[0]

    @property
    def layers(self) -> int:
        """Number of layers that can be cut between."""
        return self.layout.count

    def mesh(self, option: int, name: str = "stage") -> Mesh:
        """The logical mesh of an option."""
        return Mesh.from_shape(name, self.shapes[option])

    def limit(self, option: int) -> float:
        """Bytes per device of an option."""
        return self.memory or float(self.groups[option].memory)

    def run(self, stages: Sequence[int]) -> Partition:
        """The cheapest partition into one of the given numbers of stages; CompileError where none fits."""
        table = self._tables(stages)
        while True:
            found = table.partition(stages)
            if len(self.options) < len(self.shapes) and (
                not table.shareable or (found is None and self.only and not self.rough)
            ):
                self.options, self.only = list(range(len(self.shapes))), ()
                table = self._tables(stages)
                continue
            if found is None and self.rough and table.widen():
                continue
            self._look_around(table, found, stages)
            if found is None:
                raise self._nothing_fits(stages, table)
            if self.rough:
                self.estimates = {entry(c): table.estimate(c) for c in found.stages}
            open_entries = [c for c in found.stages if entry(c) not in self.evaluated]
            if not open_entries or self.rough:
                if self.place(found) is not None:
                    return found
                table.keep_chains()
            if self.rough:
                continue
            for choice in open_entries:
                self._evaluate(choice)
                table.correct(choice)

    def _tables(self, stages: Sequence[int]) -> Tables:
        if self.kept is None:
            return Tables(self, stages)
        self.kept.options = self.options
        kept = Tables(self.kept, stages)
        table = Tables(self, stages, kept.labellings)
        self._note_floors(kept, stages)
        offer_mixtures(table, kept)
        return table

    def layers_again(self, found: Partition) -> list[int]:
        """With `kept`: the layers of a partition that run again."""
        chosen = ((self.estimates[entry(c)], c) for c in found.stages)
        return [k for prices, c in chosen for k in layers_again(prices, c.first, c.last)]

    def _look_around(self, table: Tables, found: Partition | None, stages: Sequence[int]) -> None:
        """Note what other settings may want to know."""
        if self.kept is None:
            self.useful = tuple(self.shapes[m] for m in table.useful())
            self._note_floors(table, stages)
        if self.rough and (found is None or found.cost > (1 + SHORT) * self.floor):
            ahead: list[float] = []
            for times in FURTHER:
                if len(ahead) < NEAR or ahead[-1] > (1 + ENOUGH) * self.floor:
                    ahead.append(table.ahead(stages, times))
            self.ahead = tuple(ahead)

    def _note_floors(self, table: Tables, stages: Sequence[int]) -> None:
        self.floor = table.unlimited
        self.eager = table.without_memory(stages, replace(self.in_flight, schedule=EAGER)) if self.rough else 0.0

    def check_state(self) -> None:
        """StateDoesNotFit where state, gradient sums and the gradients of a microbatch beside them (rules M1 and M6)
        are larger than the memory of all devices."""
        skeleton, slots = self.pricer.skeleton, self.profiler.program.slots
        held = 0.0
        for slot, node in skeleton.sketch.of_slot.items():
            if slot.startswith(("arg:", "sum:")):
                times = int(self.layout.times[skeleton.layer[node]])
                held += (1 + slot.startswith("sum:")) * times * slots[slot].type.bytes
        there = sum(float(self.memory or part.memory) * part.device_count for part in self.cluster.parts)
        if held > there:
            devices = self.cluster.device_count
            raise StateDoesNotFit(
                f"no plan fits in {there / devices / 1e6:.6g} MB per device: what a step always holds (state, sums of "
                f"gradients, gradients of one microbatch), split over all {devices} devices, needs "
                f"{needed_text(held / devices)} on each (more devices, more memory or smaller types would help)",
                self.module.operation.location,
                (),
                held / devices,
            )

    def place(self, found: Partition) -> list[tuple[int, ...]] | None:
        """The devices of each stage; None where the submeshes cannot be packed into the nodes."""
        devices: dict[int, tuple[int, ...]] = {}
        for part in self.cluster.parts:
            stages = [s for s, c in enumerate(found.stages) if self.groups[c.option].first == part.first]
            packed = pack([self.mesh(found.stages[s].option).device_count for s in stages], part) if stages else []
            if packed is None:
                return None
            devices |= {s: tuple(part.first + d for d in ds) for s, ds in zip(stages, packed, strict=True)}
        return [devices[s] for s in range(len(found.stages))]

    def cost_of(self, choice: StageChoice) -> StageCost:
        """The cost of a stage of a partition that `run` returned."""
        if self.rough:
            prices, in_flight = self.estimates[entry(choice)], self.in_flight.at(choice.in_flight)
            i, j = choice.first, choice.last
            return StageCost(
                float(prices.repeated[i, j]), float(prices.once[i, j]), float(prices.memory(in_flight)[i, j]), True
            )
        return self.evaluated[entry(choice)]

    def parts_of(self, choice: StageChoice) -> StageParts:
        """The same stage taken apart."""
        layers, mesh = (choice.first, choice.last), self.mesh(choice.option)
        if self.rough:
            return self.estimates[entry(choice)].parts(*layers)
        first, flying = self.groups[choice.option].first, self.in_flight.at(choice.in_flight)
        return self.profiler.parts(layers, mesh, flying, self.memory, first)

    def exact_wait(self, choice: StageChoice) -> float:
        """`InFlight.wait` of a stage that was solved."""
        cost = self.evaluated[entry(choice)]
        return self.in_flight.exact_wait(cost.microbatch_seconds, cost.step_seconds, lambda: self.parts_of(choice))

    def _evaluate(self, choice: StageChoice) -> None:
        """The exact cost of an entry."""
        layers, mesh = (choice.first, choice.last), self.mesh(choice.option)
        first, flying = self.groups[choice.option].first, self.in_flight.at(choice.in_flight)
        self.evaluated[entry(choice)] = self.profiler.cost(layers, mesh, flying, self.memory, first)

    def _nothing_fits(self, stages: Sequence[int], table: Tables) -> CompileError:
        location = self.module.operation.location
        sizes = sorted({n for part in self.cluster.parts for n in node_sizes(part.devices_per_node)})
        if not table.shareable:
            return CompileError(
                f"the {self.cluster.device_count} devices cannot be shared out to {stages[0]} stages: a stage gets "
                f"{', '.join(str(n) for n in sizes)} devices or whole nodes",
                location,
            )
        smallest = table.smallest(stages) if not self.rough else None
        least, notes = table.crowded, list[Remark]()
        if smallest is not None:
            least, fullest = smallest
            layers, in_flight = (fullest.first, fullest.last), self.in_flight.at(fullest.in_flight)
            mesh, part = self.mesh(fullest.option), self.groups[fullest.option]
            notes = self.profiler.alive(layers, mesh, in_flight, part.first)
        return DoesNotFit(
            f"no plan fits in {table.limit / 1e6:.6g} MB per device: the smallest found needs {needed_text(least)} "
            "(more devices, more microbatches or more memory would help)",
            location,
            notes,
            least,
        )
