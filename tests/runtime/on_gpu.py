"""Checks on a real GPU, run as `python on_gpu.py NAME` (the tests' own process has CPU devices only).

`reshard` is run by mpirun, eight ranks on as many GPUs, or on one where each rank has an NCCL_HOSTID of its own.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import mlp_plan
import numpy as np
from parts import in_parts

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.dialect.plan import Plan, Stage
from alpa_mlir.dialect.staged import MeshTensor, PlanMain
from alpa_mlir.dialect.tiles import Placement, whole, within
from alpa_mlir.passes.route import plan_route
from alpa_mlir.runtime import layout
from alpa_mlir.runtime.carriers import transfers_for
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.platform import Choice, nccl_modules
from alpa_mlir.runtime.program import Path, decode, read
from alpa_mlir.runtime.transfer_order import in_order
from alpa_mlir.runtime.transport.base import Message, Test
from alpa_mlir.runtime.transport.gpu import DeviceMemory, Gpu
from alpa_mlir.runtime.transport.nccl import Line, NcclTransport
from benchmarks.reshard import CASES, sharding

SHAPE = (24, 24, 2)
EDGE = ("a", "b")
WINDOWS = [
    (slice(0, 24), slice(0, 24), slice(0, 2)),
    (slice(0, 12), slice(0, 24), slice(0, 2)),
    (slice(0, 24), slice(6, 18), slice(0, 2)),
    (slice(3, 9), slice(4, 8), slice(1, 2)),
]
TYPES = ("float32", "bfloat16", "bool", "int8", "float64", "complex64", "int32", "float16")


def own_gpu() -> tuple[Gpu, Any]:
    """The first GPU, as the runtime has it."""
    layout.prepare_environment(1, (0,))
    device = jax.devices()[0]
    assert device.platform == "gpu"
    return Gpu(*nccl_modules(), {0: device}), device


@jax.jit
def late(seed: Any) -> Any:
    """A number that takes the GPU some 20 ms: whoever reads what depends on it too early reads something else."""
    big = jnp.full((4096, 4096), seed, jnp.float32) * 1e-4
    return jax.lax.fori_loop(0, 60, lambda _, x: jnp.tanh(x @ big), big).sum() * 0


def values(dtype: str, seed: int) -> np.ndarray:
    """Numbers that every type holds."""
    found = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 100, SHAPE)
    return np.asarray(found).astype(jnp.dtype(dtype))


def computed(value: np.ndarray) -> jax.Array:
    """The value on the GPU, in a buffer that is written late."""
    number = late(1.0 + value.size)
    return jax.jit(lambda v, z: jnp.where(z == 0, v, jnp.zeros_like(v)))(value, number)


def boxes() -> None:
    """Boxes within the GPU's memory, of every type, strided and whole; what they make is donated, or read."""
    gpu, device = own_gpu()
    memory = DeviceMemory(gpu)
    for number, dtype in enumerate(TYPES):
        left, right = values(dtype, number), values(dtype, 100 + number)
        for owned in (False, True):
            target = memory.take(SHAPE, left.dtype, 0)
            sources = [computed(v) for v in (left, right)]
            held = [memory.hold(s) for s in sources]
            halves = [(slice(None), slice(0, 12)), (slice(None), slice(12, 24))]
            tests: list[Test] = []
            for h, half in zip(held, halves, strict=True):
                test = memory.copy(target[half], h, half, ())
                assert test is not None
                tests.append(test)
            del sources, held
            (made,) = memory.shards([target], [tests], owned)
            change = jax.jit(lambda x: x + x if x.dtype != bool else ~x, donate_argnums=0 if owned else ())
            expected = np.concatenate([left[:, :12], right[:, 12:]], axis=1)
            np.testing.assert_array_equal(
                np.asarray(change(made)), expected + expected if dtype != "bool" else ~expected
            )
            assert made.is_deleted() == owned and device in target.array.devices()
            if not owned:
                np.testing.assert_array_equal(np.asarray(made), expected)


def itself() -> None:
    """NCCL from a GPU to itself: many transfers under way, late sources that are dropped or donated, relayed boxes."""
    gpu, _ = own_gpu()
    line = Line(EDGE, (0,), ((0, 0),))
    peers, memory = NcclTransport(gpu, [line], [0], lambda mine: mine), DeviceMemory(gpu)
    change = jax.jit(lambda x: x * 0 if x.dtype != bool else ~x, donate_argnums=0)
    landed: list[tuple[Any, list[Test], np.ndarray]] = []
    for number in range(24):
        window, dtype = WINDOWS[number % 4], TYPES[number % len(TYPES)]
        value = values(dtype, number)
        source = computed(value)
        held = memory.hold(source) if number % 3 == 0 else source
        target = memory.take(SHAPE, value.dtype, 0)
        with peers.together(EDGE, hold=True):
            peers.post_send(held, window, Message(0, 0, number))
        with peers.together(EDGE):
            test = peers.post_receive(target[window], Message(0, 0, number))
        again = memory.take(SHAPE, value.dtype, 0)
        with peers.together(EDGE):
            relayed = peers.post_receive(again[window], Message(0, 0, 100 + number))
            peers.post_send(target, window, Message(0, 0, 100 + number), [test])
        if number % 3 == 0:
            change(source)
        del source, held
        landed += [(target, [test], value[window]), (again, [relayed], value[window])]
    for number, (target, tests, expected) in enumerate(landed):
        (made,) = memory.shards([target], [tests], number % 2 == 0)
        np.testing.assert_array_equal(np.asarray(made[WINDOWS[number // 2 % 4]]), expected)
    while not peers.idle():
        peers.progress()
    assert peers.sent == sum(expected.nbytes for _, _, expected in landed)


def steps() -> None:
    """Steps of a plan of two stages on one GPU: no value comes to the host, weights stay, memory does not grow."""
    from alpa_mlir.runtime.devices import Submeshes
    from alpa_mlir.runtime.worker import Worker

    _, device = own_gpu()
    module = parse_module(mlp_plan.plan_text(2, ((0,), (1,))), make_context())
    plan, rank_of = read(module), [0, 0]
    part = decode(module, plan, 0, rank_of)
    part = replace(part, actions=in_order(part.actions))
    submeshes, watchdog = Submeshes(plan, 0, rank_of, [device, device]), Watchdog(0, 0)
    worker = Worker(
        part, submeshes, transfers_for(Choice("cuda", "local"), part, submeshes, rank_of, watchdog), watchdog
    )
    arguments = mlp_plan.arguments()
    for number in worker.wanted:
        worker.place(number, arguments[number])
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        try:
            np.asarray(jnp.ones(3, device=device) + 1)
            raise SystemExit("the guard lets values through")
        except jax.errors.JaxRuntimeError:
            pass
        for _ in range(5):
            worker.step()
        worker.wait()
        before = device.memory_stats()["bytes_in_use"]
        for _ in range(45):
            worker.step()
        worker.wait()
        gc.collect()
        after = device.memory_stats()["bytes_in_use"]
    assert after <= before, (before, after)
    with jax.default_matmul_precision("highest"):
        for i, expected in enumerate(mlp_plan.reference(arguments, 50, 2)):
            np.testing.assert_allclose(np.asarray(worker.result(i)), expected, rtol=2e-2, atol=2e-2)


def reshard() -> None:
    """Every resharding between two meshes of ranks by NCCL, three transfers under way."""
    from mpi4py import MPI

    from alpa_mlir.runtime.devices import Submeshes

    world = MPI.COMM_WORLD
    gpu_made = False
    for case in CASES:
        stages, kinds, first = {}, [], 0
        for name, grid, text in (("a", *case[:2]), ("b", *case[2:])):
            stages[name] = Stage(
                Mesh(name, (("x", grid[0]), ("y", grid[1]))), tuple(range(first, first + grid[0] * grid[1]))
            )
            first += grid[0] * grid[1]
            kinds.append(MeshTensor(name, SHAPE, "bf16", sharding(text)))
        if first != world.size:
            continue
        plan = Plan(stages, PlanMain((), (), ()), (), None)
        if not gpu_made:
            devices = layout.connect(layout.arrange(plan, world.size, "-"), world, Choice("cuda", "nccl"))
            gpu_made = True
        places = [Placement(stages[k.mesh].mesh, k.sharding) for k in kinds]
        routes, path = {0: plan_route(SHAPE, *places, 2, 16)}, Path(kinds[0], kinds[1], 0)
        _exchange(world, plan, routes, path, devices, Submeshes)
    assert gpu_made
    world.Barrier()
    layout.disconnect()


def _exchange(world: Any, plan: Plan, routes: Any, path: Path, devices: Any, submeshes_of: Any) -> None:
    from alpa_mlir.runtime.shares import device_side, host_side, lines_of
    from alpa_mlir.runtime.transfers import Transfers

    rank_of = list(range(world.size))
    submeshes = submeshes_of(plan, world.rank, rank_of, devices)
    gpu = Gpu(*nccl_modules(), {world.rank: devices[world.rank]})
    lines = lines_of([path], submeshes.places, routes, rank_of)
    peers = NcclTransport(gpu, lines, [world.rank], world.bcast)
    side = device_side(gpu, peers, world.size, [world.rank])
    transfers = Transfers(submeshes, side, host_side(world.rank, rank_of, None), routes, Watchdog(world.rank, 0))
    given = [np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(jnp.bfloat16) + 10 * n for n in range(3)]
    for number, value in enumerate(given):
        if submeshes.own_tiles(path.source):
            shard = jax.device_put(value[within(submeshes.own_tiles(path.source)[world.rank], whole(SHAPE))])
            shards = [SimpleNamespace(device=devices[world.rank], data=shard)]
            transfers.give(in_parts(shards), path, number, False)
        if submeshes.own_tiles(path.target):
            transfers.expect(path, number)
    for number, value in enumerate(given):
        for box in submeshes.own_tiles(path.target).values():
            made = transfers.take(path, number, "a transfer")
            np.testing.assert_array_equal(np.asarray(made.addressable_data(0)), value[within(box, whole(SHAPE))])
    transfers.finish("the last messages")


CHECKS: dict[str, Callable[[], None]] = {"boxes": boxes, "itself": itself, "steps": steps, "reshard": reshard}

if __name__ == "__main__":
    with jax.enable_x64(True):
        CHECKS[sys.argv[1]]()
