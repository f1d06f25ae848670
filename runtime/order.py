"""One total order of the instructions of all submeshes, in which every receive follows its send.

A rank that takes part in several submeshes runs their lists in one thread, and ranks that share a submesh must
start its programs in the same order.  Both follow when every rank derives the same total order of *all*
instructions and keeps its own part: execution then waits only for what is earlier in that order, and nothing
waits in a circle.  A split module without schedules (level 6) runs in the order of its dataflow.
"""

from __future__ import annotations

from collections.abc import Iterator

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import ONCE, Combine, Instruction, Plan, Recv, Run, Schedule, Send
from alpa_mlir.dialect.staged import Accumulate, Fragment, PlanMain, Stack, Step, Transfer

Placed = tuple[str, Instruction]
"""An instruction and the submesh that executes it."""


def total_order(plan: Plan) -> tuple[Placed, ...]:
    """All instructions in one order; `CompileError` where the lists wait for one another in a circle.

    Submeshes take turns; a turn ends before the second program, or where a receive has to wait.
    """
    if not plan.schedules:
        return tuple(_dataflow_order(plan.main))
    turns = [_Turns(schedule, plan.main) for schedule in plan.schedules]
    sent: set[tuple[int, int]] = set()
    order: list[Placed] = []
    while not all(t.finished for t in turns):
        before = len(order)
        for turn in turns:
            order.extend(turn.play(sent))
        if len(order) == before:
            stuck = [f"{t.mesh} at {t.instructions[t.at]}" for t in turns if not t.finished]
            raise CompileError(f"the schedules wait for one another: {'; '.join(stuck)}")
    return tuple(order)


class _Turns:
    """Where the list of one submesh stands."""

    def __init__(self, schedule: Schedule, main: PlanMain) -> None:
        self.mesh, self.instructions, self.at = schedule.mesh, schedule.instructions, 0
        self._main = main

    @property
    def finished(self) -> bool:
        return self.at == len(self.instructions)

    def play(self, sent: set[tuple[int, int]]) -> Iterator[Placed]:
        """The instructions of one turn; adds to `sent`."""
        calls = 0
        while not self.finished:
            instruction = self.instructions[self.at]
            if isinstance(instruction, Recv) and (instruction.id, instruction.microbatch) not in sent:
                return
            if isinstance(instruction, Run) and isinstance(self._main.step(instruction.id), Fragment):
                calls += not instruction.joined
            if calls > 1:
                return
            if isinstance(instruction, Send):
                sent.add((instruction.id, instruction.microbatch))
            self.at += 1
            yield self.mesh, instruction


def _dataflow_order(main: PlanMain) -> Iterator[Placed]:
    """A level-6 module in program order: what precedes the microbatches, each microbatch whole, the rest."""
    looped = [s for s in main.steps if main.runs_per_microbatch(s) or isinstance(s, (Accumulate, Stack))]
    inner = {s.id for s in looped}
    outer = [s for s in main.steps if s.id not in inner]
    before = [s for s in outer if isinstance(s, (Fragment, Transfer)) and s.phase == "prologue"]
    early = {s.id for s in before}
    for first in before:
        yield from _instructions(main, first, ONCE)
    for microbatch in range(main.microbatches):
        for step in looped:
            yield from _instructions(main, step, microbatch)
    for step in outer:
        if step.id not in early:
            yield from _instructions(main, step, ONCE)


def _instructions(main: PlanMain, step: Step, microbatch: int) -> Iterator[Placed]:
    if isinstance(step, Transfer):
        yield main.type_of(step.operands[0]).mesh, Send(step.id, microbatch)
        yield step.results[0].mesh, Recv(step.id, microbatch)
    elif isinstance(step, (Accumulate, Stack)):
        yield step.results[0].mesh, Combine((step.id,), microbatch)
    else:
        yield step.mesh if isinstance(step, Fragment) else step.results[0].mesh, Run(step.id, microbatch)
