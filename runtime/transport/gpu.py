"""The memory of GPUs, ordered by streams: nothing here waits on the host.

A value of jax is exported by DLPack with one of our streams, which then waits until XLA has computed it, and the export
keeps its memory alive.  Boxes land in arrays that XLA allocated itself (so XLA's own order of allocations decides
when memory is used again); a landed buffer goes back to jax by DLPack too, and XLA's stream waits for the events of all
boxes in it.  A value that a later program overwrites is copied when it is given, on XLA's stream.

CuPy gives streams, events, copies of strided boxes, and NCCL.  Elements are moved as unsigned integers of their size:
every type of jax can be that DLPack knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxlib import _jax

from alpa_mlir.runtime.transport.base import Held, Test, Window
from alpa_mlir.runtime.transport.local import Copy
from alpa_mlir.runtime.transport.memory import Memory, copied

Event: TypeAlias = Any
_CARRIERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


class Landed:
    """Tells that a box is on its way in stream order; `event` is behind it."""

    def __init__(self, event: Event = None) -> None:
        self.event = event

    def __call__(self) -> bool:
        return self.event is not None


@dataclass(frozen=True)
class DeviceBuffer:
    """A box of an array of one device, to be written; slicing the whole array gives it."""

    array: jax.Array
    window: Window = ()

    def __getitem__(self, window: Window) -> DeviceBuffer:
        return DeviceBuffer(self.array, window)


@dataclass(frozen=True)
class End:
    """One device on a communicator, with its stream."""

    device: int
    communicator: Any
    stream: Any


@dataclass(frozen=True)
class Landing:
    """Where bytes arrive: in the box itself, or in `scratch` where the box is not contiguous."""

    pointer: int
    bytes: int
    box: Any
    scratch: Any


class Gpu:
    """This process's GPUs through CuPy: `devices` are jax's by the plan's number."""

    def __init__(self, cupy: Any, nccl: Any, devices: Mapping[int, Any]) -> None:
        self._cupy, self._nccl, self._devices = cupy, nccl, dict(devices)
        self._numbers = {device: number for number, device in devices.items()}
        self._dummies: dict[int, Any] = {}
        self._external: dict[int, Any] = {}

    def at(self, device: int) -> Any:
        """CuPy's context of a device."""
        return self._cupy.cuda.Device(self._devices[device].local_hardware_id)

    def device(self, number: int) -> Any:
        """jax's device."""
        return self._devices[number]

    def number(self, device: Any) -> int:
        """The plan's number of a device of jax."""
        return self._numbers[device]

    def stream(self, device: int) -> Any:
        """A new stream, which does not wait for the default one."""
        with self.at(device):
            return self._cupy.cuda.Stream(non_blocking=True)

    def unique_id(self) -> bytes:
        """The name of a new communicator."""
        return bytes(self._nccl.get_unique_id())

    def communicators(self, count: int, identifier: bytes, places: Mapping[int, int]) -> dict[int, End]:
        """Join a communicator of `count` devices with these of ours; `places` says where in it."""
        with self.group():
            found = {}
            for device, place in places.items():
                with self.at(device):
                    made = self._nccl.NcclCommunicator(count, identifier, place)
                found[device] = End(device, made, self.stream(device))
        return found

    @contextmanager
    def group(self) -> Iterator[None]:
        """What is called inside starts at its end, together."""
        self._nccl.groupStart()
        try:
            yield
        finally:
            self._nccl.groupEnd()

    def send(self, end: End, pointer: int, count: int, peer: int) -> None:
        """Send bytes to a place of the communicator."""
        with self.at(end.device):
            end.communicator.send(pointer, count, self._nccl.NCCL_UINT8, peer, end.stream.ptr)

    def receive(self, end: End, pointer: int, count: int, peer: int) -> None:
        """Receive bytes from a place of the communicator."""
        with self.at(end.device):
            end.communicator.recv(pointer, count, self._nccl.NCCL_UINT8, peer, end.stream.ptr)

    def dummy(self, device: int) -> int:
        """A pointer to some byte of the device."""
        if device not in self._dummies:
            with self.at(device):
                self._dummies[device] = self._cupy.empty((1,), np.uint8)
        return int(self._dummies[device].data.ptr)

    def wait(self, stream: Any, tests: Sequence[Test]) -> None:
        """Let a stream wait for boxes that land."""
        for event in events(tests):
            stream.wait_event(event)

    def event(self, stream: Any) -> Test:
        """Tells whether what was queued so far is done."""
        event = stream.record()
        return lambda: bool(event.done)

    def packed(self, end: End, held: Held, window: Window) -> tuple[int, int, Any]:
        """Pointer and bytes of a contiguous box, once the stream is there, and what must live until it has left."""
        array = held.array if isinstance(held, DeviceBuffer) else held
        export = self.behind(array, end.stream)
        box = self.view(array)[window]
        if not box.flags.c_contiguous:
            with self.at(end.device), end.stream:
                packed = self._cupy.empty(box.shape, box.dtype)
                self._cupy.copyto(packed, box)
            box = packed
        return int(box.data.ptr), int(box.nbytes), (array, export, box)

    def landing(self, end: End, target: DeviceBuffer) -> Landing:
        """Where the bytes of a box may arrive, once the stream is there."""
        self.behind(target.array, end.stream)
        box = self.view(target.array)[target.window]
        scratch = None
        if not box.flags.c_contiguous:
            with self.at(end.device), end.stream:
                scratch = self._cupy.empty(box.shape, box.dtype)
        return Landing(int((box if scratch is None else scratch).data.ptr), int(box.nbytes), box, scratch)

    def unpacked(self, end: End, landing: Landing) -> Event:
        """The event behind a box that arrived."""
        if landing.scratch is not None:
            with self.at(end.device), end.stream:
                self._cupy.copyto(landing.box, landing.scratch)
        return end.stream.record()

    def copied(self, stream: Any, target: DeviceBuffer, held: Held, window: Window) -> tuple[Event, Any]:
        """The event behind a copy within this process, and what must live until then."""
        source = held.array if isinstance(held, DeviceBuffer) else held
        export = self.behind(source, stream)
        self.behind(target.array, stream)
        (place,) = target.array.devices()
        with self.at(self.number(place)), stream:
            self._cupy.copyto(self.view(target.array)[target.window], self.view(source)[window])
        return stream.record(), (source, export)

    def rehearse(self, device: int, shape: tuple[int, ...], dtype: np.dtype[Any], window: Window) -> None:
        """Load the kernels that copy such a box, by copying a small one alike: they depend on which dimensions are cut,
        not on how long they are."""
        cut = [s.stop - s.start < n for s, n in zip(window, shape, strict=False)]
        alike = tuple(
            slice(0, 1 if s.stop - s.start == 1 else 2) if c else slice(None) for s, c in zip(window, cut, strict=True)
        )
        with self.at(device), self.stream(device):
            tile = self._cupy.empty(tuple(min(n, 4) for n in shape), _CARRIERS[dtype.itemsize])
            box = tile[alike]
            if not box.flags.c_contiguous:
                packed = self._cupy.empty(box.shape, box.dtype)
                self._cupy.copyto(packed, box)
                self._cupy.copyto(box, packed)

    def view(self, array: jax.Array) -> Any:
        """CuPy's array on the same memory, its elements as unsigned integers."""
        pointer, cuda, (place,) = array.unsafe_buffer_pointer(), self._cupy.cuda, array.devices()
        memory = cuda.UnownedMemory(pointer, array.nbytes, array, place.local_hardware_id)
        return self._cupy.ndarray(array.shape, _CARRIERS[array.dtype.itemsize], cuda.MemoryPointer(memory, 0))

    def behind(self, array: jax.Array, stream: Any) -> Any:
        """Let a stream wait until an array is computed; the export keeps its memory."""
        return _jax.buffer_to_dlpack_managed_tensor(array, stream=stream.ptr)

    def imported(self, array: jax.Array, landed: Sequence[Event]) -> jax.Array:
        """The same memory as an array whose users wait for events."""
        (place,) = array.devices()
        pointer = place.get_stream_for_external_ready_events()
        if pointer not in self._external:
            self._external[pointer] = self._cupy.cuda.Stream.from_external(_External(pointer))
        for event in landed:
            self._external[pointer].wait_event(event)
        # What jax.dlpack.from_dlpack ends in, without its 100 µs of looking at types.
        export = _jax.buffer_to_dlpack_managed_tensor(array, stream=pointer)
        made: jax.Array = _jax.dlpack_managed_tensor_to_buffer(export, place, pointer, None)
        return made


@dataclass(frozen=True)
class _External:
    """A stream that is not CuPy's, by CUDA's stream protocol."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def events(tests: Sequence[Test]) -> list[Event]:
    """The events behind boxes."""
    begun = [test.begun() if isinstance(test, Copy) else test for test in tests]
    assert all(isinstance(test, Landed) and test() for test in begun), "a transfer is used before it began"
    return [test.event for test in begun if isinstance(test, Landed)]


class DeviceMemory(Memory):
    """The memory of this process's GPUs; endpoints are the plan's devices."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._streams: dict[Any, Any] = {}
        self._copying: dict[Any, deque[tuple[Event, Any]]] = {}
        self._makers: dict[tuple[Any, ...], Any] = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any], endpoint: int) -> DeviceBuffer:
        """See `Memory`."""
        key = (shape, dtype, endpoint)
        if key not in self._makers:
            place = SingleDeviceSharding(self._gpu.device(endpoint))
            self._makers[key] = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=place)
        return DeviceBuffer(self._makers[key]())

    def copy(self, target: DeviceBuffer, held: Held, window: Window, after: Sequence[Test]) -> Test | None:
        """See `Memory`; a copy in stream order."""
        (place,) = target.array.devices()
        if place not in self._streams:
            self._streams[place] = self._gpu.stream(self._gpu.number(place))
            self._copying[place] = deque()
        stream, copying = self._streams[place], self._copying[place]
        while copying and copying[0][0].done:
            copying.popleft()
        self._gpu.wait(stream, after)
        event, keep = self._gpu.copied(stream, target, held, window)
        copying.append((event, keep))
        return Landed(event)

    def rehearse(self, shape: tuple[int, ...], dtype: np.dtype[Any], window: Window, endpoint: int) -> None:
        """See `Memory`: loads kernels, which waits for those that run."""
        self._gpu.rehearse(endpoint, shape, dtype, window)

    def hold(self, held: Held) -> Held:
        """See `Memory`: a copy, which XLA makes before anything it is told later."""
        return copied(held) if isinstance(held, jax.Array) else held

    def shards(self, parts: Sequence[Held], landed: Sequence[Sequence[Test]], owned: bool) -> list[Held]:
        """See `Memory`."""
        return [
            self._shard(part, tests, owned) if isinstance(part, DeviceBuffer) else part
            for part, tests in zip(parts, landed, strict=True)
        ]

    def _shard(self, part: DeviceBuffer, tests: Sequence[Test], owned: bool) -> jax.Array:
        made = self._gpu.imported(part.array, events(tests))
        # Memory that came by DLPack is not XLA's to give to another array.
        return copied(made) if owned else made
