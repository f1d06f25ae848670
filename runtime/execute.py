"""Run a plan in this process: every device of the plan is a device of jax's here.

The oracle of the compiler's last passes, and the engine of `alpa-mlir-run --local`.  The process must have been
started with enough devices (`layout.prepare_environment`, or XLA_FLAGS and PJRT_NPROC as its docstring says).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.runtime.devices import Submeshes
from alpa_mlir.runtime.executable import dtype_of
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.layout import device_count
from alpa_mlir.runtime.program import decode, read
from alpa_mlir.runtime.transport.base import Array
from alpa_mlir.runtime.worker import Worker


def run_plan(plan: str | ir.Module, arguments: Sequence[Array], *, steps: int = 1) -> list[Array]:
    """The results of `@main` after `steps` steps on the same batch; state results replace their arguments.

    `plan` is a plan (level 7) or a split module without schedules (level 6), as text or module; `arguments` are
    those of `@main`, whole.  Raises `CompileError` for a malformed plan, for arguments that do not fit it, and
    where this process has too few devices.
    """
    module = parse_module(plan, make_context()) if isinstance(plan, str) else plan
    decoded = read(module)
    needed, present = device_count(decoded), jax.devices()
    if len(present) < needed:
        raise CompileError(f"the plan is for {needed} devices, this process has {len(present)}")
    if len(arguments) != len(decoded.main.arguments):
        raise CompileError(f"the plan has {len(decoded.main.arguments)} arguments, {len(arguments)} were given")
    rank_of = [0] * needed
    submeshes = Submeshes(decoded, 0, rank_of, present[:needed], None, Watchdog(0, 0))
    worker = Worker(decode(module, decoded, 0, rank_of), submeshes, Watchdog(0, 0))
    for number, (value, argument) in enumerate(zip(arguments, decoded.main.arguments, strict=True)):
        whole = np.asarray(value)
        if whole.shape != argument.type.shape or whole.dtype != dtype_of(argument.type.element):
            raise CompileError(
                f"argument {number} is {argument.type.tensor_text}, got {whole.dtype}{list(whole.shape)}"
            )
        worker.place(number, whole)
    for _ in range(steps):
        worker.step()
    worker.wait()
    found = [worker.result(i) for i in range(len(decoded.main.results))]
    return [r for r in found if r is not None]
