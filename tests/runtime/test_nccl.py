"""The transport of GPUs on a fake NCCL that is stricter than the real one: order, sizes, groups, no deadlock.

What needs a GPU is in `test_gpu.py`.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import mlp_plan
import numpy as np
import pytest
from fake_nccl import Deadlock, World
from parts import in_parts

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.plan import Plan, Stage
from alpa_mlir.dialect.staged import MeshTensor, PlanMain
from alpa_mlir.dialect.tiles import Placement, whole, within
from alpa_mlir.passes.route import plan_route
from alpa_mlir.runtime import program
from alpa_mlir.runtime.actions import Expect, Give, Take
from alpa_mlir.runtime.devices import Submeshes
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.program import decode, paths_of, read
from alpa_mlir.runtime.shares import device_side, host_side, lines_of
from alpa_mlir.runtime.transfer_order import in_order
from alpa_mlir.runtime.transfers import Transfers
from alpa_mlir.runtime.transport.nccl import NcclTransport
from alpa_mlir.runtime.worker import Worker
from benchmarks.reshard import CASES, sharding

SHAPE = (24, 24, 2)


class OneRank:
    """A rank's transfers over the fake, and what it is still to do, in the order of the numbers."""

    def __init__(self, world: World, job: Job, rank: int) -> None:
        own = [d for d, r in enumerate(job.rank_of) if r == rank]
        here = [jax.devices()[d % 8] if d in own else None for d in range(len(job.rank_of))]
        self.submeshes = Submeshes(job.plan, rank, job.rank_of, here)
        peers = NcclTransport(world.gpu({d: here[d] for d in own}), job.lines, own, job.share)
        side = device_side(peers.gpu, peers, len(job.rank_of), own)
        host = host_side(rank, job.rank_of, None)
        self.transfers = Transfers(self.submeshes, side, host, {0: job.route}, Watchdog(0, 0))
        self.job, self.rank, self.side = job, rank, side
        self.actions = []
        for number in range(job.count):
            if self.submeshes.own_tiles(job.path.source):
                self.actions.append((self.give, number))
            if self.submeshes.own_tiles(job.path.target):
                self.actions.append((self.expect, number))

    def give(self, number: int) -> None:
        """This rank's tiles of the value, as jax would have them."""
        shards = []
        for device, box in self.submeshes.own_tiles(self.job.path.source).items():
            tile = self.job.values[number][within(box, whole(SHAPE))]
            place = self.submeshes.device(device)
            shards.append(SimpleNamespace(device=place, data=jax.device_put(tile, place)))
        self.transfers.give(in_parts(shards), self.job.path, number, False)

    def expect(self, number: int) -> None:
        self.transfers.expect(self.job.path, number)

    def check(self, number: int) -> None:
        """Every tile of this rank is there."""
        share = self.transfers._share(self.job.path)
        if not share.placed:
            return
        landing = self.transfers._landing.get(number)
        for spot, _ in share.placed:
            if spot in share.whole:
                message = self.transfers._message(share.whole[spot], number)
                (made,) = self.side.local.take([message])
            else:
                (made,) = self.side.memory.shards([landing.buffers[spot]], [landing.tests(spot)], False)
            expected = self.job.values[number][within(spot[1], whole(SHAPE))]
            np.testing.assert_array_equal(np.asarray(made), expected)


class Job:
    """Some transfers of one kind between two meshes, on as many ranks as `per_rank` devices each make."""

    def __init__(self, case: Any, per_rank: int, seed: int, dtype: Any = np.float32, shared: bool = False) -> None:
        stages, kinds, first = {}, [], 0
        for name, grid, text in (("a", *case[:2]), ("b", *case[2:])):
            size = grid[0] * grid[1]
            first = 0 if shared else first
            stages[name] = Stage(Mesh(name, (("x", grid[0]), ("y", grid[1]))), tuple(range(first, first + size)))
            first += size
            element = {np.float32: "f32", np.bool_: "i1"}.get(dtype, "bf16")
            kinds.append(MeshTensor(name, SHAPE, element, sharding(text)))
        self.plan = Plan(stages, PlanMain((), (), ()), (), None)
        self.path = program.Path(kinds[0], kinds[1], 0)
        places = [Placement(stages[k.mesh].mesh, k.sharding) for k in kinds]
        self.route = plan_route(SHAPE, places[0], places[1], 4, 16)
        self.rank_of = [d // per_rank for d in range(first)]
        where = {name: (stage.mesh, stage.devices) for name, stage in stages.items()}
        self.lines = lines_of([self.path], where, {0: self.route}, self.rank_of)
        self.count, self._identifiers = 3, []
        rng = np.random.default_rng(seed)
        self.values = [rng.integers(0, 2 if dtype == np.bool_ else 99, SHAPE).astype(dtype) for _ in range(self.count)]

    def share(self, mine: list[bytes]) -> list[bytes]:
        """Rank 0's."""
        self._identifiers = self._identifiers or mine
        return self._identifiers


def play(job: Job, seed: int) -> World:
    """All ranks, whose hosts run in a random order."""
    world, rng = World(), np.random.default_rng(seed)
    everyone = [OneRank(world, job, r) for r in range(1 + max(job.rank_of))]
    while left := [r for r in everyone if r.actions]:
        what, number = left[rng.integers(len(left))].actions.pop(0)
        what(number)
        world.run()
    world.finished()
    for rank in everyone:
        for number in range(job.count):
            rank.check(number)
        assert rank.side.peers is not None and rank.side.peers.idle()
    return world


@pytest.mark.parametrize("per_rank", [1, 2, 4])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[1]}-{c[3]}")
def test_every_resharding_arrives(case: Any, per_rank: int) -> None:
    job = Job(case, per_rank, 0)
    world = play(job, per_rank)
    if per_rank == 1:
        copies = case[2][0] * case[2][1] // job.plan.stages["b"].mesh.extent(job.path.target.sharding.axes)
        connected = sum(len(line.pairs) for line in job.lines)
        assert world.moved == connected + job.count * copies * job.values[0].nbytes


@pytest.mark.parametrize("dtype", [jax.numpy.bfloat16, np.bool_])
def test_types_that_cupy_does_not_know_are_moved(dtype: Any) -> None:
    play(Job(CASES[2], 1, 1, dtype), 0)


@pytest.mark.parametrize("per_rank", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_stages_that_share_devices(seed: int, per_rank: int) -> None:
    """A rank's sends then start with its receives: apart, two that send to one another would wait for ever."""
    for case in (CASES[2], CASES[4], CASES[7]):
        play(Job(case, per_rank, seed, shared=True), seed)


def test_the_fake_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receive in the wrong order, and one that nobody sends for."""
    job = Job(CASES[0], 1, 0)
    world = World()
    everyone = [OneRank(world, job, r) for r in range(8)]
    for rank in everyone:
        for what, number in rank.actions if rank.rank else rank.actions[:-1]:
            what(number)
    with pytest.raises(Deadlock):
        world.finished()
    world, job = World(), Job(CASES[2], 1, 0, shared=True)
    everyone = [OneRank(world, job, r) for r in range(4)]
    for rank in everyone:  # sends and receives of a transfer apart
        together = rank.side.peers.together
        monkeypatch.setattr(rank.side.peers, "together", lambda edge, hold=False, real=together: real(edge))
        for what, number in rank.actions:
            what(number)
    with pytest.raises(Deadlock):
        world.finished()


PLANS = {
    "2+2": (4, ((0, 1), (2, 3)), (0, 0, 1, 1)),
    "2+4": (2, ((0, 1), (2, 3, 4, 5)), (0, 0, 1, 1, 1, 1)),
    "1+1": (8, ((0,), (1,)), (0, 1)),
    "in one process": (2, ((0, 1), (2, 3)), (0, 0, 0, 0)),
    "in one process on fewer devices": (2, ((0, 1), (2, 3)), (0, 0, 0, 0)),
    "in one process on one device": (4, ((0,), (1,)), (0, 0)),
}
FEWER = {"in one process on fewer devices": 2, "in one process on one device": 1}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_trains_over_it(name: str) -> None:
    """Whole steps, a thread for each rank."""
    microbatches, stages, rank_of = PLANS[name]
    devices = [jax.devices()[d % FEWER.get(name, 8)] for d in range(len(rank_of))]
    module = parse_module(mlp_plan.plan_text(microbatches, stages), make_context())
    plan = read(module)
    arguments, world = mlp_plan.arguments(), World()
    world.current.group = None
    identifiers = [bytes([i]) * 128 for i in range(9)]
    found: list[list[Any]] = [[], []]

    def rank(number: int) -> None:
        own = [d for d, r in enumerate(rank_of) if r == number]
        part = decode(module, plan, number, rank_of)
        part = replace(part, actions=in_order(part.actions))
        submeshes, watchdog = Submeshes(plan, number, rank_of, devices), Watchdog(0, 0)
        lines = lines_of(paths_of(plan.main), submeshes.places, part.routes, rank_of)
        gpu = world.gpu({d: devices[d] for d in own})
        peers = NcclTransport(gpu, lines, own, lambda mine: identifiers[: len(mine)])
        side = device_side(peers.gpu, peers, len(rank_of), own)
        transfers = Transfers(submeshes, side, host_side(number, rank_of, None), part.routes, watchdog)
        worker = Worker(part, submeshes, transfers, watchdog)
        transfers.rehearse([a.path for a in part.actions if isinstance(a, Give | Expect)])
        worker.rehearse()
        for argument in worker.wanted:
            worker.place(argument, arguments[argument])
        for _ in range(3):
            worker.step()
        worker.wait()
        found[number] = worker.values

    threads = [threading.Thread(target=rank, args=(r,), daemon=True) for r in sorted(set(rank_of))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), world.state()
    world.finished()
    expected = mlp_plan.reference(arguments, 3, microbatches)
    for i, value in enumerate(expected):
        (mine, *_) = [results[i] for results in found if results and results[i] is not None]
        np.testing.assert_allclose(np.asarray(mine), value, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_every_rank_starts_its_halves_in_one_order(microbatches: int) -> None:
    """And every transfer is still expected before it is taken."""
    stages = ((0, 1), (2, 3))
    module = parse_module(mlp_plan.plan_text(microbatches, stages), make_context())
    plan, moved = read(module), 0
    for rank_of in ([0, 0, 1, 1], [0, 1, 2, 3], [0, 1, 1, 0], [0, 0, 0, 0]):
        for rank in range(1 + max(rank_of)):
            before = decode(module, plan, rank, rank_of).actions
            after = in_order(before)
            assert sorted(map(str, before)) == sorted(map(str, after))
            assert [a for a in before if not isinstance(a, Expect)] == [a for a in after if not isinstance(a, Expect)]
            halves = [a.transfer for a in after if isinstance(a, Give | Expect)]
            assert halves == sorted(halves)
            moved += halves != [a.transfer for a in before if isinstance(a, Give | Expect)]
            for i, action in enumerate(after):
                if isinstance(action, Take):
                    assert any(isinstance(a, Expect) and a.transfer == action.transfer for a in after[:i])
    assert moved or microbatches == 1
