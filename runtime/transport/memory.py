"""Where boxes land, and how a tensor is made of what has landed.

On CPUs that is host memory: aligned numpy buffers, which XLA takes over without a copy, one for each tile however
many devices of the process hold it.  On GPUs it is the memory of each device (`alpa_mlir.runtime.transport.gpu`).
"""

from __future__ import annotations

import gc
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxlib import xla_client

from alpa_mlir.runtime.transport.base import Array, Buffer, Held, Test, Window

ALIGNMENT = 64
"""XLA takes a host buffer over without a copy when it is aligned to this many bytes."""


class Memory(ABC):
    """The memory of one kind of endpoint."""

    @abstractmethod
    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any], endpoint: int) -> Buffer:
        """A free buffer; its contents are arbitrary.  Slices of it are views, as numpy's."""

    @abstractmethod
    def copy(self, target: Buffer, held: Held, window: Window, after: Sequence[Test]) -> Test | None:
        """Copy a box within this process, when all of `after` are done; None while it is not computed."""

    @abstractmethod
    def hold(self, held: Held) -> Held | None:
        """The same values where no donation can reach them until the result is dropped; None: not computed yet."""

    @abstractmethod
    def shards(self, parts: Sequence[Held], landed: Sequence[Sequence[Test]], owned: bool) -> list[Held]:
        """What an assembled tensor is made of, a part for each device; `parts` are buffers, with boxes, or arrays.

        `owned`: a program will overwrite them.
        """

    def rehearse(self, shape: tuple[int, ...], dtype: np.dtype[Any], window: Window, endpoint: int) -> None:  # noqa: B027
        """Do now what the first move of such a box out of or into a tile would have to prepare."""

    def early(self, make: Callable[[list[Buffer]], jax.Array], parts: list[Buffer]) -> jax.Array | None:
        """What `make` makes of buffers in which nothing has landed yet; None where it would not see what lands."""
        return None


def assembler(
    shape: tuple[int, ...], dtype: np.dtype[Any], sharding: NamedSharding, devices: Sequence[Any]
) -> Callable[[list[Held]], jax.Array]:
    """Makes tensors from one part for each device of this process: host arrays, or arrays of any device."""
    # What jax.device_put ends in, without its 40 µs of looking at pytrees and types.
    put, aval, places = xla_client.batched_device_put, jax.core.ShapedArray(shape, dtype), list(devices)
    return lambda parts: put(aval, sharding, parts, places)


def parted(value: jax.Array, order: list[int] | None = None) -> dict[int, Held]:
    """The parts of a tensor on this process's devices, by jax's number of the device: `assembler` undone.

    `order`, empty at first, remembers these numbers from tensor to tensor of one sharding: asking for all that jax says
    of the parts takes 20 µs.  (Where all devices hold the same, jax names the parts in no other way.)
    """
    if order:
        return {device: value.addressable_data(n) for n, device in enumerate(order)}
    shards = value.addressable_shards
    if order is not None and (len(shards) == 1 or not value.is_fully_replicated):
        order += [shard.device.id for shard in shards]
    return {shard.device.id: shard.data for shard in shards}


copied = jax.jit(jnp.copy)
"""The same values in memory of their own; jnp.copy by itself takes 100 µs to find that out."""


class HostMemory(Memory):
    """Aligned host buffers that are used again once no array lives on them.

    A device array made from such a buffer shares its memory and keeps a reference to it, so the reference
    count tells when the buffer is free (touching fresh pages would cost more than the message).
    """

    def __init__(self) -> None:
        self._blocks: dict[int, list[Array]] = {}
        self._shared = True

    @property
    def blocks(self) -> int:
        """How many buffers there are, free or not."""
        return sum(len(blocks) for blocks in self._blocks.values())

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any], endpoint: int) -> Array:
        """See `Memory`; host memory serves all endpoints of the process."""
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        blocks = self._blocks.setdefault(size, [])
        found = _unused(blocks)
        if found is None and blocks:
            # XLA's threads leave the references that they drop to jax, which lets go of them when Python collects.
            gc.collect(0)
            found = _unused(blocks)
        if found is None:
            found = len(blocks)
            blocks.append(np.empty(size + ALIGNMENT, np.uint8))
        start = -blocks[found].ctypes.data % ALIGNMENT
        return blocks[found][start : start + size].view(dtype).reshape(shape)

    def copy(self, target: Array, held: Held, window: Window, after: Sequence[Test]) -> Test | None:
        """See `Memory`."""
        if not is_ready(held):
            return None
        target[...] = np.asarray(held)[window]
        return _done

    def hold(self, held: Held) -> Held | None:
        """See `Memory`: as long as the view lives, XLA does not reuse the buffer."""
        return np.asarray(held) if is_ready(held) else None

    def shards(self, parts: Sequence[Held], landed: Sequence[Sequence[Test]], owned: bool) -> list[Held]:
        """See `Memory`."""
        return list(parts)

    def early(self, make: Callable[[list[Buffer]], jax.Array], parts: list[Buffer]) -> jax.Array | None:
        """See `Memory`: it sees it where XLA has taken the buffers over as they are, which GPUs never do."""
        if not self._shared:
            return None
        made = make(parts)
        self._shared = all(device.platform == "cpu" for device in made.devices())
        places = {made.addressable_data(i).unsafe_buffer_pointer() for i in range(len(parts))}
        return made if places == {part.ctypes.data for part in parts} else None


def _unused(blocks: list[Array]) -> int | None:
    # Views refer to the block itself.  Unused, it has two references: the list's and getrefcount's argument.
    return next((i for i in range(len(blocks)) if sys.getrefcount(blocks[i]) == 2), None)


def _done() -> bool:
    return True


def is_ready(held: Held) -> bool:
    """Whether the contents can be read without waiting."""
    return isinstance(held, np.ndarray) or held.is_ready()
