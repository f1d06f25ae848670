"""The run of a plan on one rank: open, compile, step, write, compare.

All programs are compiled before the first step, which starts together: a rank that waits for a peer's message in a
step waits for work, not for a compiler.  What is read from files is read by rank 0 alone and told to the others, so
that what is wrong with it is said once, and before the first step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect.plan import Plan
from alpa_mlir.dialect.signature import Place, Signature
from alpa_mlir.dialect.tiles import Box
from alpa_mlir.runtime import clocks, layout, memory, program
from alpa_mlir.runtime.actions import Expect, Give
from alpa_mlir.runtime.guard import FAILED, OK, TERMINATED, StopRequest, Watchdog
from alpa_mlir.runtime.job import Job
from alpa_mlir.runtime.platform import Choice
from alpa_mlir.runtime.position import Position
from alpa_mlir.runtime.team import Team
from alpa_mlir.runtime.trace import in_time_of, predicted_seconds, profile, trace_events, write
from alpa_mlir.runtime.transfer_order import in_order
from alpa_mlir.runtime.transport.base import Array, Message, wait_until

if TYPE_CHECKING:
    from alpa_mlir.runtime.recorder import Recorder


class Rank:
    """The run on one rank of a team."""

    def __init__(
        self,
        job: Job,
        module: ir.Module,
        plan: Plan,
        world: Any,
        choice: Choice,
        watchdog: Watchdog,
        stop: StopRequest,
    ) -> None:
        """`world` is MPI's communicator of all ranks, or None for one process."""
        self._job, self._module, self._plan = job, module, plan
        self._team = Team(world, watchdog)
        self._rank = self._team.rank
        self._layout = layout.arrange(plan, self._team.size, f"{job.plan}:1:1")
        self._team.meet()  # what is collective in here would take the cores from ranks that are late
        devices = layout.connect(self._layout, world, choice)
        # These import jax, which must not be started before `connect` has said how many devices there are.
        from alpa_mlir.runtime.carriers import transfers_for
        from alpa_mlir.runtime.devices import Submeshes
        from alpa_mlir.runtime.inputs import InParts
        from alpa_mlir.runtime.transport.mpi import MpiTransport
        from alpa_mlir.runtime.worker import Worker

        shared = len(self._layout.groups[self._rank]) > 1
        self._team.meet()
        self._peers = None if self._team.size == 1 else MpiTransport(world, threaded=shared)
        if self._peers is not None:
            self._team.progress = self._peers.progress
        self._watchdog, self._stop = watchdog, stop
        self._stored, self._begin = self._find_checkpoint()
        self._steps = range(self._begin.step, self._begin.step + job.steps)
        self._signature = Signature(plan.main)
        self._source = self._open_inputs()
        self._parts = InParts(self._source, self._signature)
        self._reference = self._open_reference()
        self._open_outputs()
        self._saved = self._open_checkpoints()
        first, count = self._rank * self._layout.per_rank, self._layout.per_rank
        self._gpus = {d: devices[d] for d in range(first, first + count)} if choice.platform == "cuda" else {}
        self._check_memory(range(first, first + count))
        if len(set(devices)) < len(devices) and world is None:
            folded = f"{len(devices)} devices of the plan share {len(set(devices))} here"
            print(f"{job.plan}:1:1: note: {folded}", file=sys.stderr, flush=True)
        submeshes = Submeshes(plan, self._rank, self._layout.rank_of, devices)
        watchdog.beat("compiling")
        part = program.decode(module, plan, self._rank, self._layout.rank_of)
        if choice.platform == "cuda":
            part = replace(part, actions=in_order(part.actions))
        transfers = transfers_for(choice, part, submeshes, self._layout.rank_of, watchdog, world, self._peers)
        self._recorder: Recorder | None = None
        if job.trace is not None or job.profile:
            from alpa_mlir.runtime.recorder import Recorder

            self._recorder = Recorder(part, self._rank, transfers.progress)
            self._recorder.start()
        self._seconds: list[float] = []
        self._worker = Worker(part, submeshes, transfers, watchdog, self._recorder, job.store, self._team.meet)
        if self._gpus and world is not None:
            transfers.rehearse([a.path for a in part.actions if isinstance(a, Give | Expect)])
            self._worker.rehearse()
        if self._rank == 0 and job.store is not None and job.store.trouble is not None:
            print(f"{job.plan}:1:1: note: {job.store.trouble}", file=sys.stderr, flush=True)

    def run(self) -> int:
        """All steps and what follows them; the exit status (the same on all ranks only through `run_under_mpi`)."""
        wanting = self._wanting()
        self._watchdog.beat("ready for the first step")
        self._team.meet()
        recorder = self._recorder
        clock = clocks.read(self._team.world) if recorder is not None else None
        with self._watchdog.watching():
            with self._short_memory_explained():
                self._load()
                stopped = any(self._once(step, wanting) for step in self._steps)
            if recorder is not None and clock is not None:
                self._show(recorder, clock)
            results = self._gather() if not stopped and (self._job.outputs or self._job.reference) else []
        if stopped:
            return TERMINATED
        return self._conclude(results) if self._rank == 0 else OK

    def _check_memory(self, own: range) -> None:
        """Refuse a plan that needs more than there is."""
        if self._gpus:
            mine = memory.gpu_demands(self._module, self._plan, self._gpus, self._rank)
        else:
            mine = [memory.demand(self._module, self._plan, own)]
        everyone = [demand for theirs in self._team.everyone(mine) for demand in theirs]
        self._team.on_rank_0(lambda: memory.check(everyone, self._plan, f"{self._job.plan}:1:1"))

    @contextmanager
    def _short_memory_explained(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as e:  # jax's own is a RuntimeError
            if not memory.is_shortage(e):
                raise
            doing = self._watchdog.activity.what
            location, gpus = f"{self._job.plan}:1:1", list(self._gpus.values())
            raise memory.explain(e, doing, self._worker.footprints, location, gpus) from None

    def _once(self, step: int, wanting: dict[int, tuple[int, ...]]) -> bool:
        """One step with what belongs to it; whether it is the last because somebody asked to stop."""
        self._place(step, wanting)
        self._step(step)
        if self._job.checkpoint is None:
            return False
        # All ranks get the same answer after the same step.
        stops = self._team.any_of(self._stop.asked, "the other ranks to end the step")
        every = self._job.checkpoint_every
        if stops or step == self._steps[-1] or (every and (step + 1) % every == 0):
            path = self._save(step + 1)
            if stops and self._rank == 0:
                print(f"stopped by a signal: go on with --restore {path}", file=sys.stderr, flush=True)
        return stops

    def _find_checkpoint(self) -> tuple[Path | None, Position]:
        """Where the state comes from, and where the run begins."""
        path, seed = self._job.restore, self._job.seed
        if path is None:
            return None, Position(0, seed or 0, self._job.inputs is not None)
        from alpa_mlir.runtime.checkpoint import find

        found = self._team.on_rank_0(lambda: find(path, self._plan.main))
        folder, at = self._team.told(found)
        if self._rank == 0 and at.inputs != (self._job.inputs is not None):
            was = "read from a file" if at.inputs else "drawn"
            print(f"{path}:1:1: note: before this checkpoint the batches were {was}", file=sys.stderr, flush=True)
        return folder, replace(at, seed=at.seed if seed is None else seed, inputs=self._job.inputs is not None)

    def _open_checkpoints(self) -> Any:
        """The folder to write to, on rank 0; None elsewhere and where nothing is to be written."""
        path = self._job.checkpoint
        if path is None:
            return None
        from alpa_mlir.runtime.checkpoint import Directory

        return self._team.on_rank_0(lambda: Directory(path, self._job.checkpoint_keep))

    def _load(self) -> None:
        """Take the state from the checkpoint."""
        if self._stored is not None:
            from alpa_mlir.runtime import checkpoint

            for number in checkpoint.state_arguments(self._plan.main.arguments):
                place = self._signature.place(number)
                self._watchdog.beat(f"reading argument {place.whole} of the checkpoint")
                self._worker.load(number, partial(self._read, self._stored, place))

    @staticmethod
    def _read(stored: Path, place: Place, box: Box) -> Array:
        """A box of an argument from the checkpoint."""
        from alpa_mlir.runtime import checkpoint

        return checkpoint.read(stored, place.whole, place.box(box))

    def _save(self, done: int) -> Path | None:
        """Write a checkpoint after `done` steps; its path on rank 0."""
        from alpa_mlir.runtime import checkpoint

        self._watchdog.beat("writing a checkpoint")
        guard = partial(checkpoint.writing, str(self._job.checkpoint), done)
        folder = self._team.told(self._team.on_rank_0(guard()(lambda: self._saved.begin(self._plan, done))))
        with guard():
            writes = [
                checkpoint.write(folder, place.whole, place.box(box), tile)
                for number in checkpoint.state_arguments(self._plan.main.arguments)
                for place in [self._signature.place(number)]
                for box, tile in self._worker.kept(number).items()
            ]
            for written in writes:
                wait_until(written.done, lambda: None, self._watchdog, "writing a checkpoint")
                written.result()
        self._team.await_all("the other ranks to write their part of a checkpoint")
        at = replace(self._begin, step=done)
        return cast("Path | None", self._team.on_rank_0(guard()(lambda: self._saved.commit(folder, self._plan, at))))

    def _show(self, recorder: Recorder, first: clocks.Reading) -> None:
        """Gather what was recorded on all ranks, and write the trace and print the table on rank 0."""
        self._team.await_all("the other ranks to end")
        world = self._team.world
        mine = in_time_of(clocks.to_rank_0(first, clocks.read(world)), recorder.steps)
        ranks = [mine] if world is None else world.gather(mine)
        if self._rank != 0:
            return
        if self._job.profile:
            table = profile(self._plan, predicted_seconds(self._module, self._plan), ranks, self._seconds)
            print("\n".join(table), flush=True)
        if self._job.trace is not None:
            foretold = self._job.predicted(self._module) if self._job.predicted is not None else ()
            if not foretold:
                print(f"{self._job.plan}:1:1: note: the plan does not say what it predicts", file=sys.stderr)
            write(self._job.trace, trace_events(self._plan, ranks, foretold))

    def _open_inputs(self) -> Any:
        """Where the arguments come from; on ranks other than 0, None for a file."""
        from alpa_mlir.runtime.inputs import Drawn, FromFile

        arguments = self._signature.arguments
        if self._job.inputs is None:
            return Drawn(arguments, self._begin.seed, self._begin.step)
        return self._team.on_rank_0(lambda: FromFile(str(self._job.inputs), arguments, self._steps))

    def _open_reference(self) -> Any:
        """The original program on rank 0, None elsewhere and where there is none."""
        read = self._job.reference
        if read is None:
            return None
        from alpa_mlir.runtime.reference import original

        return self._team.on_rank_0(lambda: original(read(self._module), self._signature, self._job.reference_name))

    def _open_outputs(self) -> None:
        """Refuse a file that cannot be written before the first step, not after the last."""
        from alpa_mlir.runtime.inputs import check_writable

        for path, what in ((self._job.outputs, "outputs"), (self._job.trace, "trace")):
            if path is not None:
                self._team.on_rank_0(partial(check_writable, path, what))

    def _wanting(self) -> dict[int, tuple[int, ...]]:
        """For each argument the ranks that need it."""
        everyone = self._team.everyone(self._worker.wanted)
        count = len(self._plan.main.arguments)
        return {i: tuple(r for r, w in enumerate(everyone) if i in w) for i in range(count)}

    def _place(self, step: int, wanting: dict[int, tuple[int, ...]]) -> None:
        """Give the worker this step's arguments; a file's come from rank 0."""
        main = self._plan.main
        self._watchdog.wait(f"the arguments of step {step}")
        for number, ranks in wanting.items():
            resumed = step > self._begin.step or self._stored is not None
            if resumed and main.arguments[number].role == "state":
                continue
            if self._job.inputs is None:
                value = self._parts.value(number, step) if self._rank in ranks else None
            else:
                value = self._deliver(number, step, ranks)
            if value is not None:
                self._worker.place(number, value)

    def _whole(self, number: int, step: int) -> Array | None:
        """The program's argument `number` as the step begins, on rank 0; None where it stays as it was."""
        argument = self._signature.arguments[number]
        if self._stored is None or argument.role != "state":
            return cast("Array | None", self._source.value(number, step))
        from alpa_mlir.runtime import checkpoint

        return checkpoint.read(self._stored, number, tuple((0, n) for n in argument.type.shape))

    def _deliver(self, number: int, step: int, ranks: Sequence[int]) -> Array | None:
        """Argument `number` from rank 0's file, on the ranks that need it; None where it stays as it was."""
        value = self._parts.value(number, step) if self._rank == 0 else None
        if self._peers is None:
            return value if 0 in ranks else None
        others = [r for r in ranks if r != 0]
        what = f"distributing argument {number}"
        changes = self._team.told(value is not None)
        if not changes:
            return None
        if self._rank == 0:
            for rank in others:
                self._peers.post_send(value, (), Message(0, rank, number))
            wait_until(self._peers.idle, self._peers.progress, self._watchdog, what)
            return value if 0 in ranks else None
        if self._rank not in others:
            return None
        from alpa_mlir.runtime.executable import dtype_of

        kind = self._plan.main.arguments[number].type
        landing = np.empty(kind.shape, dtype_of(kind.element))
        landed = self._peers.post_receive(landing, Message(0, self._rank, number))
        wait_until(landed, self._peers.progress, self._watchdog, what)
        return landing

    def _step(self, step: int) -> None:
        start = time.perf_counter()
        if self._recorder is not None:
            self._recorder.begin()
        self._worker.step()
        if self._recorder is not None:
            wait_until(self._recorder.idle, self._recorder.progress, self._watchdog, f"the end of step {step}")
        self._watchdog.wait(f"the results of step {step}")
        self._worker.wait()
        scalars = [(number, self._worker.result(own)) for number, own in self._scalars()]
        elapsed = time.perf_counter() - start
        self._seconds.append(elapsed)
        if self._rank == 0:
            said = ", ".join(f"{self._name(i)} = {float(v):.6g}" for i, v in scalars if v is not None)
            print(f"step {step}: {said + ', ' if said else ''}{elapsed * 1e3:.1f} ms", flush=True)

    def _scalars(self) -> list[tuple[int, int]]:
        """Float scalars among the results that are not state, the loss and its like: their numbers, those in @main."""
        state = {a.updates for a in self._signature.arguments}
        return [
            (number, whole.parts[0])
            for number, whole in enumerate(self._signature.results)
            if whole.type.shape == () and whole.type.element[0] in "fb" and number not in state
        ]

    def _name(self, number: int) -> str:
        said = self._signature.names[number]
        return f"out{number} ({said})" if said else f"out{number}"

    def _gather(self) -> list[Array]:
        found = [self._worker.result(i) for i in range(len(self._plan.main.results))]
        return self._signature.joined([r for r in found if r is not None]) if self._rank == 0 else []

    def _conclude(self, results: list[Array]) -> int:
        from alpa_mlir.runtime.inputs import write_outputs
        from alpa_mlir.runtime.reference import Bound, bound_for, report, run_original

        if self._job.outputs:
            write_outputs(self._job.outputs, results)
        if self._reference is None:
            return OK
        arguments = self._signature.arguments
        inputs = (self._reference, arguments, self._whole, self._steps, self._job.store)
        expected = run_original(*inputs)
        asked = self._job.tolerance
        wide = partial(run_original, *inputs)
        bound = Bound(asked) if asked is not None else bound_for(self._reference, results, expected, wide)
        names = [self._name(i) for i in range(len(results))]
        lines, equal = report(names, results, expected, bound)
        print("\n".join(lines), flush=True)
        return OK if equal else FAILED
