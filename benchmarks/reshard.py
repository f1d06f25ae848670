"""Resharding between submeshes: bytes on the wire against the lower bound, speed against raw MPI.

    python -m benchmarks.reshard [--ranks-per-mesh 1] [--megabytes 64] [--rounds 15] [--json FILE]

The cases are Alpa's (S0: dimension 0 over mesh axis 0; R: replicated) on pairs of meshes (rows x columns).  Each
mesh lies on `--ranks-per-mesh` ranks of its own, started here under mpirun.  Columns: the tensor's megabytes; what
crossed from rank to rank, counted at the senders, and the least that can (what the destination needs, each byte once);
what was passed on between ranks inside the destination; milliseconds from when the values are there to when the new
tensor is there on all ranks; the same by bare MPI between the same ranks, in buffers that were touched before: with the
same messages, between their places in tiles (packed before, what is packed), and with one contiguous message for each
box; the ratios of these to ours, of the quickest quarters of the rounds.  The three alternate; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path as File
from statistics import median
from typing import Any

import numpy as np

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.plan import Plan, Stage
from alpa_mlir.dialect.sharding import Sharding
from alpa_mlir.dialect.staged import MeshTensor, PlanMain
from alpa_mlir.dialect.tiles import Box, Placement, extents, volume, within
from alpa_mlir.passes.route import RouteTransfers, plan_route
from alpa_mlir.runtime import launch, layout
from alpa_mlir.runtime.reshard import Piece

CASES = (
    ((2, 2), "S0RR", (2, 2), "S0RR"),
    ((2, 2), "RRR", (2, 2), "S0RR"),
    ((2, 2), "RS0R", (2, 2), "S0RR"),
    ((2, 2), "RS01R", (2, 2), "S01RR"),
    ((2, 2), "S1RR", (2, 2), "S0RR"),
    ((2, 4), "S01RR", (3, 4), "S01RR"),
    ((2, 4), "RS1R", (3, 4), "RRR"),
    ((4, 1), "S0RR", (4, 1), "RRR"),
)
FLOAT = 4


@dataclass(frozen=True)
class Row:
    """One case, measured; the ratios are bare MPI's time over ours, with the same messages and with whole boxes."""

    case: str
    megabytes: float
    across: int
    bound: int
    inside: int
    milliseconds: float
    same_milliseconds: float
    whole_milliseconds: float
    same: float
    whole: float


def sharding(text: str) -> Sharding:
    """`RS01R` as a sharding over the axes x (0) and y (1)."""
    dims: list[list[str]] = []
    for letter in text:
        if letter in "SR":
            dims.append([])
        else:
            dims[-1].append("xy"[int(letter)])
    return Sharding(tuple(tuple(d) for d in dims))


class Bench:
    """One case on one rank."""

    def __init__(self, case: Any, world: Any, per_mesh: int, megabytes: float) -> None:
        self.shape = (48, 48, max(1, round(megabytes * 2**20 / FLOAT / 48 / 48)))
        self.world, self.round = world, 0
        plan, kinds = plan_of(case, per_mesh)
        arranged = layout.arrange(plan, world.size, "-")
        devices = layout.connect(arranged, world)
        from alpa_mlir.runtime.actions import Path
        from alpa_mlir.runtime.devices import Submeshes
        from alpa_mlir.runtime.guard import Watchdog
        from alpa_mlir.runtime.shares import pieces_of
        from alpa_mlir.runtime.transfers import Transfers
        from alpa_mlir.runtime.transport.mpi import MpiTransport

        source, target = (MeshTensor(k.mesh, self.shape, "f32", k.sharding) for k in kinds)
        begin, end = (Placement(plan.stages[k.mesh].mesh, k.sharding) for k in kinds)
        route = plan_route(self.shape, begin, end, FLOAT, RouteTransfers().smallest_part)
        self.submeshes = Submeshes(plan, world.rank, arranged.rank_of, devices)
        self.peers = MpiTransport(world, threaded=per_mesh > 1)
        self.transfers = Transfers.on_host(self.submeshes, arranged.rank_of, self.peers, {0: route}, Watchdog(0, 0))
        self.path = Path(source, target, 0)
        self.pieces = pieces_of(self.path, self.submeshes.places, {0: route}, (*arranged.rank_of, 0))
        self.values = np.arange(np.prod(self.shape), dtype=np.float32).reshape(self.shape)
        self.gives, self.takes = (bool(self.submeshes.own_tiles(k)) for k in (source, target))
        self.value = self.submeshes.put(self.values, source) if self.gives else None
        self.made: Any = None
        self.tiles: dict[tuple[bool, Box], Any] = {}
        self.same = [(p, self._places(p)) for p in self.pieces if p.sender != p.receiver]
        self.whole = [(p, self._box(p)) for p, _ in self.same]

    def _box(self, piece: Piece) -> list[Any]:
        """A contiguous buffer for a piece of this rank."""
        here = self.world.rank in (piece.sender, piece.receiver)
        return [np.ones(volume(piece.box), np.float32)] if here else []

    def _places(self, piece: Piece) -> list[Any]:
        """Where the messages of a piece come from or go to on this rank."""
        from alpa_mlir.runtime.transport.mpi import parts

        if self.world.rank not in (piece.sender, piece.receiver):
            return []
        receives = self.world.rank == piece.receiver
        tile = piece.tile if receives else piece.held
        if (receives, tile) not in self.tiles:
            self.tiles[receives, tile] = np.ones(extents(tile), np.float32)
        place = self.tiles[receives, tile][within(piece.box, tile)]
        return parts(place, piece.lead) if piece.lead or place.flags.c_contiguous else self._box(piece)

    def ours(self) -> None:
        """One transfer, until the new tensor is there."""
        self.round += 1
        if self.takes:
            self.transfers.expect(self.path, self.round)
        if self.gives:
            self.transfers.give(self.value, self.path, self.round, False)
        if self.takes:
            self.made = self.transfers.take(self.path, self.round, "-")
            self.made.block_until_ready()
        self.transfers.finish("-")

    def raw(self, bare: list[tuple[Piece, list[Any]]]) -> None:
        """Messages by bare MPI, what crosses before what is passed on."""
        from mpi4py import MPI

        for crossing in (True, False):
            requests = []
            for number, (piece, buffers) in enumerate(bare):
                receives = piece.receiver == self.world.rank
                post, peer = (self.world.Irecv, piece.sender) if receives else (self.world.Isend, piece.receiver)
                if (piece.source is not None) == crossing:
                    requests += [post(buffer, peer, number) for buffer in buffers]
            MPI.Request.Waitall(requests)

    def timed(self, work: Callable[[], None]) -> float:
        """Seconds from the last rank's start to the last rank's end."""
        self.world.Barrier()
        start = time.monotonic()
        work()
        stop = time.monotonic()
        stamps = self.world.allgather((start, stop))
        return float(max(b for _, b in stamps) - max(a for a, _ in stamps))

    def check(self) -> None:
        """Compare what arrived with what was sent."""
        if self.takes:
            for shard in self.made.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), self.values[shard.index])

    def crossed(self) -> tuple[int, int]:
        """Bytes that one transfer sent from mesh to mesh, and inside the destination, all ranks together."""
        before = self.peers.sent
        self.ours()
        sent = np.array([self.peers.sent - before] * 2) * [int(self.gives), int(self.takes)]
        total = self.world.allreduce(sent)
        return int(total[0]), int(total[1])


def run_case(number: int, per_mesh: int, megabytes: float, rounds: int) -> None:
    """One rank's part of a case; rank 0 prints the row as JSON."""
    from mpi4py import MPI

    case, world = CASES[number], MPI.COMM_WORLD
    bench = Bench(case, world, per_mesh, megabytes)
    works = (bench.ours, partial(bench.raw, bench.same), partial(bench.raw, bench.whole))
    for work in works * 3:
        bench.timed(work)
    bench.check()
    across, inside = bench.crossed()
    times = [[bench.timed(work) for work in works] for _ in range(rounds)]
    bench.check()
    ours, same, whole = (sorted(column) for column in zip(*times, strict=True))
    quick = max(1, rounds // 4)
    quiet = [median(column[:quick]) for column in (ours, same, whole)]
    if world.rank == 0:
        (first, a), (second, b) = case[:2], case[2:]
        text = f"({first[0]},{first[1]}) {a} -> ({second[0]},{second[1]}) {b}"
        size = int(np.prod(bench.shape)) * FLOAT
        all_ms = [median(column) * 1e3 for column in (ours, same, whole)]
        of_bare = quiet[1] / quiet[0], quiet[2] / quiet[0]
        row = Row(text, size / 2**20, across, size, inside, all_ms[0], all_ms[1], all_ms[2], *of_bare)
        print(json.dumps(asdict(row)), flush=True)
    world.Barrier()
    layout.disconnect()


def plan_of(case: Any, per_mesh: int) -> tuple[Plan, tuple[MeshTensor, MeshTensor]]:
    """Two submeshes, each on `per_mesh` ranks of its own, and the two types (without shape)."""
    sizes = [case[0][0] * case[0][1], case[2][0] * case[2][1]]
    per_rank = max(sizes) // per_mesh
    stages, kinds = {}, []
    for number, (name, grid, text) in enumerate((("a", case[0], case[1]), ("b", case[2], case[3]))):
        mesh = Mesh(name, (("x", grid[0]), ("y", grid[1])))
        share = sizes[number] // per_mesh
        first = number * per_mesh * per_rank
        devices = tuple(first + (d // share) * per_rank + d % share for d in range(sizes[number]))
        stages[name] = Stage(mesh, devices)
        kinds.append(MeshTensor(name, (), "f32", sharding(text)))
    return Plan(stages, PlanMain((), (), ()), (), None), (kinds[0], kinds[1])


def main() -> None:
    """Start a job for each case and print the table."""
    parser = argparse.ArgumentParser(description="Measure resharding between submeshes.")
    parser.add_argument("--ranks-per-mesh", type=int, default=1, choices=(1, 2, 4))
    parser.add_argument("--megabytes", type=float, default=64.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=File)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        run_case(options.case, options.ranks_per_mesh, options.megabytes, options.rounds)
        return
    rows = []
    print(
        f"{'case':32}{'MB':>7}{'across':>12}{'bound':>12}{'inside':>12}"
        f"{'ms':>9}{'same ms':>9}{'whole ms':>9}{'same':>7}{'whole':>7}"
    )
    for number in range(len(CASES)):
        words = ["--case", number, "--megabytes", options.megabytes, "--rounds", options.rounds]
        words += ["--ranks-per-mesh", options.ranks_per_mesh]
        row = Row(**json.loads(start(2 * options.ranks_per_mesh, [str(w) for w in words])))
        rows.append(row)
        print(
            f"{row.case:32}{row.megabytes:7.1f}{row.across:12}{row.bound:12}{row.inside:12}"
            f"{row.milliseconds:9.2f}{row.same_milliseconds:9.2f}{row.whole_milliseconds:9.2f}"
            f"{row.same:7.2f}{row.whole:7.2f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


def start(ranks: int, words: Sequence[str]) -> str:
    """What rank 0 of a job of this module printed."""
    command = [launch.find_mpirun() or "mpirun", "-n", str(ranks), sys.executable, "-m", "benchmarks.reshard", *words]
    environment = {**launch.ENVIRONMENT, **os.environ}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return [line for line in done.stdout.splitlines() if line.startswith("{")][-1]


if __name__ == "__main__":
    main()
