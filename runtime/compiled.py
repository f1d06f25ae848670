"""Executables kept from run to run: XLA's compiler is most of the time until the first step.

An executable is found again by a digest of all that decides it: the program's text and boundary, the devices, this
package's source, the versions of jax and jaxlib, XLA's flags, and the processor.  One that does not load is compiled
again.  Processes of a job may use one another's.  Programs of GPUs of several processes are not kept: XLA's autotuning
there is a joint effort of all processes, and one that finds the program would leave the others waiting.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import jax
import jaxlib
from jax.experimental import serialize_executable

from alpa_mlir.runtime.agreement import source_digest


class Store(Protocol):
    """Bytes by digest; `trouble` says why nothing can be kept."""

    trouble: str | None

    def get(self, digest: str) -> bytes | None:
        """What was put, or None."""

    def put(self, digest: str, value: bytes) -> None:
        """Keep a value."""

    def drop(self, digest: str) -> None:
        """Forget a value that is of no use."""


def digest(what: object, mesh: jax.sharding.Mesh) -> str | None:
    """The name of a program on the devices of a mesh; None for one that is not kept.  `what` has a telling repr."""
    devices = list(mesh.devices.flat)
    if mesh.is_multi_process and devices[0].platform != "cpu":
        return None
    places = [(d.id, d.process_index) for d in devices]
    kind = (devices[0].platform, devices[0].device_kind, len(jax.local_devices()))
    told = repr((what, mesh.axis_names, mesh.devices.shape, places, kind, _surroundings()))
    return "xla-" + hashlib.sha256(told.encode()).hexdigest()


def load(store: Store, name: str, mesh: jax.sharding.Mesh) -> jax.stages.Compiled | None:
    """The executable that was kept, ready to run; None where there is none that loads."""
    kept = store.get(name)
    if kept is None:
        return None
    try:
        payload, inputs, outputs = pickle.loads(kept)
        devices = list(mesh.devices.flat)
        return serialize_executable.deserialize_and_load(payload, inputs, outputs, execution_devices=devices)
    except _UNREADABLE:
        store.drop(name)
        return None


def save(store: Store, name: str, compiled: jax.stages.Compiled) -> None:
    """Keep an executable, where XLA can write it down."""
    try:
        kept = serialize_executable.serialize(compiled)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
        return
    store.put(name, pickle.dumps(kept))


_UNREADABLE = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What reading an executable raises that this process cannot use."""


@cache
def _surroundings() -> tuple[Any, ...]:
    """What else decides the compiler's output: the number of threads too, by which XLA divides loops on CPUs."""
    flags = os.environ.get("XLA_FLAGS"), os.environ.get("PJRT_NPROC"), len(os.sched_getaffinity(0))
    return jax.__version__, jaxlib.__version__, source_digest(), flags, platform.machine(), _processor()


def _processor() -> str:
    """What instructions the processor has: code for more than it has would crash."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
