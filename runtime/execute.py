"""Run a plan in this process: every device of the plan is a device of jax's here.

The oracle of the compiler's last passes, and the engine of the Python API.  The process must have been started with
enough devices (`layout.prepare_environment`, or XLA_FLAGS and PJRT_NPROC as its docstring says).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.signature import Signature
from alpa_mlir.runtime.carriers import transfers_for
from alpa_mlir.runtime.compiled import Store
from alpa_mlir.runtime.devices import Submeshes
from alpa_mlir.runtime.executable import dtype_of, stored
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.layout import device_count
from alpa_mlir.runtime.platform import choose
from alpa_mlir.runtime.program import decode, read
from alpa_mlir.runtime.transfer_order import in_order
from alpa_mlir.runtime.transport.base import Array, Held
from alpa_mlir.runtime.worker import Worker


def devices_here(platform: str = "auto") -> list[Any]:
    """jax's devices of this process: "cpu", "cuda", or those that it computes on by default ("auto").

    CompileError where there are none.
    """
    try:
        return list(jax.devices(None if platform == "auto" else platform))
    except RuntimeError as e:
        raise CompileError(f"jax has no platform {platform} in this process: {str(e).splitlines()[0]}") from None


class InProcess:
    """A plan at work on this process's devices, those of `devices_here(platform)`.

    `plan` is a plan (level 7) or a split module without schedules (level 6), as text or module; `store` keeps what XLA
    compiled for the next time.  Raises `CompileError` for a malformed plan, and where this process has too few devices.
    """

    def __init__(self, plan: str | ir.Module, platform: str = "auto", store: Store | None = None) -> None:
        module = parse_module(plan, make_context()) if isinstance(plan, str) else plan
        decoded = read(module)
        needed, present = device_count(decoded), devices_here(platform)
        if len(present) < needed:
            raise CompileError(f"the plan is for {needed} devices, this process has {len(present)}")
        rank_of = [0] * needed
        submeshes, watchdog = Submeshes(decoded, 0, rank_of, present[:needed]), Watchdog(0, 0)
        self._signature, self._count = Signature(decoded.main), len(decoded.main.results)
        choice = choose("cpu" if present[0].platform == "cpu" else "cuda", "auto", 1)
        part = decode(module, decoded, 0, rank_of)
        if choice.platform == "cuda":
            part = replace(part, actions=in_order(part.actions))
        transfers = transfers_for(choice, part, submeshes, rank_of, watchdog)
        self._worker = Worker(part, submeshes, transfers, watchdog, store=store)
        self._held: dict[int, jax.Array] = {}

    def place(self, arguments: Sequence[Held]) -> None:
        """Give all arguments of the program, whole; CompileError for one that does not fit.

        An array that is already where it belongs (a state result of the last step) stays there, and its memory is taken
        over by the next step.
        """
        expected = self._signature.arguments
        if len(arguments) != len(expected):
            raise CompileError(f"the plan has {len(expected)} arguments, {len(arguments)} were given")
        for number, (value, argument) in enumerate(zip(arguments, expected, strict=True)):
            if isinstance(value, jax.Array | tuple) and value is self._held.get(number):
                continue
            whole = stored(np.asarray(value), argument.type.element)
            if whole.shape != argument.type.shape or whole.dtype != dtype_of(argument.type.element):
                raise CompileError(
                    f"argument {number} is {argument.type.tensor_text}, got {whole.dtype}{list(whole.shape)}"
                )
            for part in self._signature.given[number].parts:
                self._worker.place(part, np.asarray(self._signature.part(whole, part), order="C"))
            self._held.pop(number, None)
            if isinstance(value, jax.Array):
                self._held[number] = value

    def step(self) -> list[Any]:
        """Run one step; the results, on the devices of their stages, those that the plan keeps in parts as tuples of
        these.  Nothing is waited for."""
        self._worker.step()
        values = self._worker.values
        found = [
            values[whole.parts[0]] if len(whole.parts) == 1 else tuple([values[n] for n in whole.parts])
            for whole in self._signature.results
        ]
        for number, argument in enumerate(self._signature.arguments):
            if argument.updates is not None:
                self._held[number] = found[argument.updates]
        return found

    def results(self) -> list[Array]:
        """The results of the last step, whole in host memory."""
        self._worker.wait()
        found = [self._worker.result(i) for i in range(self._count)]
        return self._signature.joined([r for r in found if r is not None])


def run_plan(
    plan: str | ir.Module,
    arguments: Sequence[Held],
    *,
    steps: int = 1,
    platform: str = "auto",
    store: Store | None = None,
) -> list[Array]:
    """The results of `@main` after `steps` steps on the same batch; state results replace their arguments.

    See `InProcess`; `arguments` are those of the program, whole.
    """
    running = InProcess(plan, platform, store)
    running.place(arguments)
    for _ in range(steps):
        running.step()
    return running.results()
