"""Receive buffers are used again as soon as nothing lives on them: fresh pages cost more than the message."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from alpa_mlir.dialect.mesh import Mesh
from alpa_mlir.runtime.executable import jax_mesh
from alpa_mlir.runtime.transport.base import Array, Held, Message, Test, Window
from alpa_mlir.runtime.transport.local import LocalTransport
from alpa_mlir.runtime.transport.memory import HostMemory, assembler
from alpa_mlir.runtime.transport.mpi import _Arrival

SHAPE, F32 = (64, 64), np.dtype(np.float32)


def test_a_buffer_is_free_when_its_message_has_landed_and_its_array_is_gone() -> None:
    memory = HostMemory()
    mesh = jax_mesh(Mesh("m", (("x", 1),)), jax.devices()[:1])
    sharding = NamedSharding(mesh, PartitionSpec())
    landed = []
    for value in range(20):
        buffer = memory.take(SHAPE, F32, 0)
        arrival = _Arrival(0, 1, buffer, None)
        landed.append(arrival)  # some transfers are remembered for long
        buffer[...] = value
        assert arrival.part_landed() and arrival()
        made = assembler(SHAPE, F32, sharding, jax.devices()[:1])([buffer])
        assert made.unsafe_buffer_pointer() == buffer.ctypes.data
        assert np.asarray(made + 1).max() == value + 1
        del buffer
    # One under the last array, one that is being filled; XLA's threads may be late to let go of some.
    assert 2 <= memory.blocks <= 5


def test_a_strided_box_is_unpacked_once_all_parts_have_landed() -> None:
    target, landing = np.zeros((4, 4)), np.ones((4, 2))
    arrival = _Arrival(0, 2, target[:, :2], landing)
    assert arrival.part_landed() == 0
    assert not arrival() and target.sum() == 0
    assert arrival.part_landed() == 1
    assert arrival() and target.sum() == 8


def test_an_array_made_before_its_boxes_land_sees_them() -> None:
    memory, devices = HostMemory(), jax.devices()[:2]
    sharding = NamedSharding(jax_mesh(Mesh("m", (("x", 2),)), devices), PartitionSpec("x"))
    halves = [memory.take((32, 64), F32, 0) for _ in devices]
    made = memory.early(assembler(SHAPE, F32, sharding, devices), halves)
    assert made is not None
    for number, half in enumerate(halves):
        half[...] = number + 1
    assert np.asarray(made).sum() == 32 * 64 * 3


def test_an_array_that_cannot_live_in_its_buffers_is_not_made_early() -> None:
    device = jax.devices()[:1]
    sharding = NamedSharding(jax_mesh(Mesh("m", (("x", 1),)), device), PartitionSpec())
    crooked = np.zeros(64 * 64 * 4 + 64, np.uint8)
    start = -crooked.ctypes.data % 64 + 4
    buffer = crooked[start : start + 64 * 64 * 4].view(F32).reshape(SHAPE)
    assert HostMemory().early(assembler(SHAPE, F32, sharding, device), [buffer]) is None


def test_two_threads_that_look_for_a_copy_make_it_once() -> None:
    """The thread that passes messages on asks whether a box was copied, while the main thread waits for it."""

    class Slow(HostMemory):
        copies = 0

        def copy(self, target: Array, held: Held, window: Window, after: Sequence[Test]) -> Test | None:
            time.sleep(0.2)
            self.copies += 1
            return super().copy(target, held, window, after)

    memory = Slow()
    local = LocalTransport(memory)
    message, target = Message(0, 0, 1), np.zeros(4)
    local.post_send(np.arange(4.0), (slice(None),), message)
    copied = local.post_receive(target, message)
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: copied(), range(4)))
    assert memory.copies == 1 and (target == np.arange(4.0)).all() and local.idle()
