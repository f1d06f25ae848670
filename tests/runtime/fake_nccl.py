"""CuPy and NCCL as far as the transport uses them, on host memory, with the rules of NCCL made strict.

Streams are queues.  A device runs one group at a time, in the order in which they were started on it, whatever the
stream; a send ends only with its receive; what two devices send one another on a communicator matches in order and
must be of equal size.  So a plan that comes through here needs no luck on GPUs.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from alpa_mlir.runtime.transport.gpu import Event, Gpu

LIMIT = 20.0


class Deadlock(AssertionError):
    """Nothing moves any more."""


class FakeEvent:
    """Done when its stream came by."""

    def __init__(self, world: World) -> None:
        self.world, self.reached = world, False

    @property
    def done(self) -> bool:
        self.world.run()
        return self.reached

    def synchronize(self) -> None:
        end = time.monotonic() + LIMIT
        while not self.done:
            if time.monotonic() > end:
                raise Deadlock(self.world.state())
            time.sleep(0.001)


class FakeStream:
    """A queue of calls (to be made), events (to be waited for or reached) and groups."""

    def __init__(self, world: World) -> None:
        self.world, self.items = world, deque[Any]()
        world.streams.append(self)
        self.ptr = len(world.streams)

    def record(self) -> FakeEvent:
        event = FakeEvent(self.world)
        self.push(lambda: setattr(event, "reached", True))
        return event

    def wait_event(self, event: FakeEvent) -> None:
        self.push(event)

    def push(self, item: Any) -> None:
        with self.world.lock:
            self.items.append(item)

    def __enter__(self) -> FakeStream:
        self.world.current.stream = self
        return self

    def __exit__(self, *_: object) -> None:
        self.world.current.stream = None


class FakeGroup:
    """What one device sends and receives at once on one communicator."""

    def __init__(self, communicator: FakeCommunicator) -> None:
        self.communicator, self.open = communicator, 0

    def __repr__(self) -> str:
        return f"group of place {self.communicator.place} with {self.open} open"


class FakeCommunicator:
    """One place of a communicator; the device is known by the world's current one."""

    def __init__(self, world: World, count: int, identifier: bytes, place: int) -> None:
        assert 0 <= place < count
        assert (identifier, place) not in world.joined
        world.joined.append((identifier, place))
        self.world, self.count, self.identifier, self.place = world, count, identifier, place

    def send(self, pointer: int, count: int, kind: int, peer: int, stream: int) -> None:
        self._post("send", pointer, count, kind, (self.place, peer), stream)

    def recv(self, pointer: int, count: int, kind: int, peer: int, stream: int) -> None:
        self._post("recv", pointer, count, kind, (peer, self.place), stream)

    def _post(self, what: str, pointer: int, count: int, kind: int, pair: tuple[int, int], stream: int) -> None:
        assert kind == FakeNccl.NCCL_UINT8 and max(pair) < self.count and pair[0] != pair[1]
        self.world.current.group.append((self, what, pointer, count, pair, self.world.streams[stream - 1]))


class FakeNccl:
    """The module cupy.cuda.nccl."""

    NCCL_UINT8 = 1

    def __init__(self, world: World) -> None:
        self._world = world

    def get_unique_id(self) -> bytes:
        return len(self._world.identifiers).to_bytes(128, "big") if not self._world.identifiers.append(0) else b""

    def NcclCommunicator(self, count: int, identifier: bytes, place: int) -> FakeCommunicator:
        return FakeCommunicator(self._world, count, identifier, place)

    def groupStart(self) -> None:
        assert self._world.current.group is None, "groups do not nest here"
        self._world.current.group = []

    def groupEnd(self) -> None:
        posted, self._world.current.group = self._world.current.group, None
        with self._world.lock:
            self._world.start(posted)


class FakeArray:
    """CuPy's array, on host memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape, self.dtype, self.flags, self.nbytes = values.shape, values.dtype, values.flags, values.nbytes
        self.data = SimpleNamespace(ptr=values.ctypes.data)

    def __getitem__(self, window: Any) -> FakeArray:
        return FakeArray(self.values[(*window, ...)])


class FakeCupy:
    """The module cupy."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.cuda = SimpleNamespace(
            Device=lambda number: SimpleDevice(),
            Stream=lambda non_blocking: FakeStream(world),
            UnownedMemory=lambda pointer, size, owner, device: (pointer, size, owner),
            MemoryPointer=lambda memory, offset: memory,
        )

    def empty(self, shape: tuple[int, ...], dtype: Any) -> FakeArray:
        return FakeArray(np.full(shape, 7, dtype))

    def ndarray(self, shape: tuple[int, ...], dtype: Any, memory: Any) -> FakeArray:
        pointer, size, owner = memory
        content = (ctypes.c_byte * size).from_address(pointer) if size else b""
        array = np.frombuffer(content, dtype).reshape(shape)
        array.flags.writeable = bool(size)
        self._world.owners.append(owner)
        return FakeArray(array)

    def copyto(self, target: FakeArray, source: FakeArray) -> None:
        assert target.shape == source.shape
        self._world.current.stream.push(lambda: np.copyto(target.values, source.values))


class SimpleDevice:
    """CuPy's context of a device."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class World:
    """All devices, streams and communicators of a job."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.current = threading.local()
        self.streams: list[FakeStream] = []
        self.identifiers: list[int] = []
        self.joined: list[tuple[bytes, int]] = []
        self.owners: list[Any] = []
        self.running: dict[Any, deque[FakeGroup]] = defaultdict(deque)
        self.device_of: dict[tuple[bytes, int], int] = {}
        self.waiting: dict[tuple[Any, ...], deque[Any]] = defaultdict(deque)
        self.moved = 0

    def gpu(self, devices: dict[int, Any]) -> HostGpu:
        """The driver of one process."""
        self.current.group = self.current.stream = None
        return HostGpu(self, devices)

    def start(self, posted: list[Any]) -> None:
        """A group, one part for each device in it."""
        parts: dict[FakeCommunicator, FakeGroup] = {}
        for communicator, what, pointer, count, pair, stream in posted:
            if communicator not in parts:
                parts[communicator] = FakeGroup(communicator)
                stream.push((parts[communicator], []))
                self.running[self.device_of[communicator.identifier, communicator.place]].append(parts[communicator])
            group, listed = stream.items[-1]
            assert group is parts[communicator], "a device's part of a group belongs to one stream"
            group.open += 1
            listed.append((communicator.identifier, what, pointer, count, pair))

    def run(self) -> None:
        """Do what can be done."""
        with self.lock:
            while any([self._advance(stream) for stream in self.streams]):
                pass

    def _advance(self, stream: FakeStream) -> bool:
        if not stream.items:
            return False
        item = stream.items[0]
        if isinstance(item, FakeEvent):
            if not item.reached:
                return False
        elif callable(item):
            item()
        elif not self._group(*item):
            return False
        stream.items.popleft()
        return True

    def _group(self, group: FakeGroup, listed: list[Any]) -> bool:
        device = self.device_of[group.communicator.identifier, group.communicator.place]
        if self.running[device][0] is not group:
            return False  # the device is busy with an earlier group
        while listed:
            identifier, what, pointer, count, pair = listed.pop(0)
            other = self.waiting[identifier, "recv" if what == "send" else "send", pair]
            mine = (group, pointer, count)
            if not other:
                self.waiting[identifier, what, pair].append(mine)
                continue
            theirs = other.popleft()
            assert theirs[2] == count, f"{what} of {count} bytes meets {theirs[2]}"
            source, target = (pointer, theirs[1]) if what == "send" else (theirs[1], pointer)
            ctypes.memmove(target, source, count)
            self.moved += count
            group.open -= 1
            theirs[0].open -= 1
        if group.open:
            return False
        self.running[device].popleft()
        return True

    def state(self) -> str:
        """What is left."""
        return "; ".join(f"stream {s.ptr}: {list(s.items)[:2]}" for s in self.streams if s.items)

    def finished(self) -> None:
        """Nothing is left."""
        self.run()
        if any(s.items for s in self.streams) or any(self.waiting.values()) or any(self.running.values()):
            raise Deadlock(self.state())


class HostGpu(Gpu):
    """The driver on host memory: here XLA has no streams, so the host waits where a GPU's stream would."""

    def __init__(self, world: World, devices: dict[int, Any]) -> None:
        super().__init__(FakeCupy(world), FakeNccl(world), devices)
        self.world = world

    def communicators(self, count: int, identifier: bytes, places: Any) -> Any:
        self.world.device_of |= {(identifier, place): device for device, place in places.items()}
        return super().communicators(count, identifier, places)

    def behind(self, array: jax.Array, stream: Any) -> Any:
        return jax.block_until_ready(array)

    def imported(self, array: jax.Array, landed: Sequence[Event]) -> jax.Array:
        for event in landed:
            event.synchronize()
        return array
