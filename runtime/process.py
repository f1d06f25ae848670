"""One job as each process sees it: link, agree, read the plan, run it, end.

Rank 0 reads the plan and tells the others; what is wrong with it is therefore said once.  Every rank checks the
plan's digest.  The run itself is `alpa_mlir.runtime.rank`.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import Plan, check_digest
from alpa_mlir.dialect.reading import read_text
from alpa_mlir.runtime import agreement, heartbeat, layout, program
from alpa_mlir.runtime.binding import bind_cores
from alpa_mlir.runtime.guard import (
    FAILED,
    StopRequest,
    Watchdog,
    die_with_parent,
    guarded,
    keep_stdout,
    label,
    leave,
    show_crashes,
    terminated,
)
from alpa_mlir.runtime.job import Job
from alpa_mlir.runtime.launch import choose_pmix_security, started_ranks
from alpa_mlir.runtime.platform import Choice, choose
from alpa_mlir.runtime.rank import Rank
from alpa_mlir.runtime.sentry import Sentry
from alpa_mlir.runtime.team import together


def run_local(job: Job) -> int:
    """Run the whole plan in this process and return the exit status.  Raises `CompileError`."""
    show_crashes()
    stop = StopRequest()
    if job.checkpoint is not None:
        stop.listen()
    _, plan, module = read(job.plan, 1, job.check)
    try:
        choice = choose(job.platform, job.transport, 1)
    except CompileError as e:
        raise _located(e, job.plan) from None
    with _located_in(job.plan):
        return Rank(job, module, plan, None, choice, Watchdog(0, job.timeout), stop).run()


def run_under_mpi(job: Job) -> NoReturn:
    """Run this rank's part of the plan and end the process with the job's exit status."""
    die_with_parent()
    keep_stdout()
    show_crashes()
    choose_pmix_security()
    sentry = Sentry(job.heartbeat if started_ranks() > 1 else 0.0)
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def body() -> None:
        stop = StopRequest()
        if job.checkpoint is None:
            signal.signal(signal.SIGTERM, lambda *_: terminated(world.rank))
        else:
            stop.listen()
        watchdog = Watchdog(world.rank, job.timeout)
        if world.size == 1 and started_ranks() > 1:
            raise CompileError(
                f"the launcher started {started_ranks()} ranks, but MPI knows of this one alone: mpirun must be that of"
                " the MPI library that mpi4py loads, and srun must have its plugin (srun --mpi=pmix)",
                f"{job.plan}:1:1",
            )
        together(world)
        beating = heartbeat.connect(world, job.heartbeat, watchdog, heeds_term=job.checkpoint is None)
        sentry.end()
        status = _run_rank(job, world, watchdog, stop, beating)
        together(world)
        status = int(world.bcast(status))
        if beating is not None:
            beating.finish()
        Sentry(job.heartbeat if world.size > 1 else 0.0, "ended")  # until this process is gone
        layout.disconnect()
        MPI.Finalize()
        # Taking apart the interpreter and XLA's clients has no order between ranks, and was seen to hang.
        leave(status)

    guarded(world.rank, body)
    leave(FAILED)


def _run_rank(job: Job, world: Any, watchdog: Watchdog, stop: StopRequest, beating: heartbeat.Heartbeat | None) -> int:
    """This rank's work; where rank 0 refuses the job, all ranks return at once."""
    watchdog.beat("comparing the ranks")
    everyone = world.allgather(agreement.identity(job.plan, job.options()))
    differs = agreement.disagreement(everyone)
    if differs is not None:
        if world.rank == 0:
            print(f"{job.plan}:1:1: error: {differs}", file=sys.stderr, flush=True)
        return FAILED
    watchdog.beat("reading the plan")
    with beating.quiet() if beating is not None else nullcontext():
        module = _receive(job, world)
    if module is None:
        return FAILED
    choice = _agree_on_platform(job, world)
    if choice is None:
        return FAILED
    plan = program.read(module)
    bind_cores(job.bind_cores, world, layout.arrange(plan, world.size, f"{job.plan}:1:1").per_rank)
    with _located_in(job.plan):
        return Rank(job, module, plan, world, choice, watchdog, stop).run()


@contextmanager
def _located_in(path: str) -> Iterator[None]:
    """What is wrong at no place of its own is wrong in the plan."""
    try:
        yield
    except CompileError as e:
        raise _located(e, path) from e


def _agree_on_platform(job: Job, world: Any) -> Choice | None:
    """Where all ranks compute and what carries values, or None where rank 0 has said why there is nothing."""
    try:
        mine: Choice | str = choose(job.platform, job.transport, world.size)
    except CompileError as e:
        mine = e.message
    together(world)
    everyone = world.allgather((mine, socket.gethostname()))
    refused = next((f"{label(r, host)}: {c}" for r, (c, host) in enumerate(everyone) if isinstance(c, str)), None)
    if refused is None and any(c != mine for c, _ in everyone):
        found = {c.platform: label(r, host) for r, (c, host) in enumerate(everyone)}
        refused = f"the platform differs between ranks: {', '.join(f'{p} on {r}' for p, r in found.items())}"
    if refused is not None and world.rank == 0:
        print(f"{job.plan}:1:1: error: {refused}", file=sys.stderr, flush=True)
    return None if refused is not None or isinstance(mine, str) else mine


def _receive(job: Job, world: Any) -> ir.Module | None:
    """The plan from rank 0, or None where it has refused it."""
    text, module = None, None
    if world.rank == 0:
        try:
            text, _, module = read(job.plan, world.size, job.check)
        except CompileError as e:
            print(e, file=sys.stderr, flush=True)
    together(world)
    text = world.bcast(text)
    return module if text is None or module is not None else _parse(text, job.plan)


def read(path: str, ranks: int, check: Callable[[Plan], None] | None = None) -> tuple[str, Plan, ir.Module]:
    """The text of a plan that `ranks` ranks can run; CompileError, located in the file, for all that is wrong.

    `check` looks at the instruction lists, where there are some.
    """
    text = read_text(path, "plan", "a plan is MLIR text, this file is not UTF-8")
    module = _parse(text, path)
    try:
        plan = program.read(module)
        layout.arrange(plan, ranks, f"{path}:1:1")
        if check is not None and plan.schedules:
            check(plan)
        program.decode(module, plan, 0, [0] * layout.device_count(plan))
    except CompileError as e:
        raise _located(e, path) from None
    return text, plan, module


def _parse(text: str, path: str) -> ir.Module:
    try:
        module = parse_module(text, make_context(), path)
        if alpa.get_string(module.operation, alpa.LEVEL) == "plan":
            check_digest(module)
    except CompileError as e:
        raise _located(e, path) from None
    return module


def _located(error: CompileError, path: str) -> CompileError:
    """The error with the file's name, which MLIR's parser calls `-`."""
    location = error.location
    if location == "-":
        location = f"{path}:1:1"
    elif location.startswith("-:"):
        location = path + location[1:]
    return CompileError(error.message, location, error.notes)
