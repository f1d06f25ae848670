"""What a run's recorded spans show: one Perfetto file of all ranks, and a table of measured against predicted times.

The file has two processes, *predicted* and *measured*, each with a thread per submesh; where a submesh spans ranks, a
thread per rank, and threads for what is received.  All times are rank 0's; each step of the prediction begins when the
measured step does.  The predicted seconds of a stage function are those that alpa-price wrote on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.plan import Plan
from alpa_mlir.runtime.files import written_whole
from alpa_mlir.runtime.joined import programs_of
from alpa_mlir.runtime.recorder import Span

Event = Mapping[str, Any]
PREDICTED, MEASURED = 0, 1


@dataclass(frozen=True)
class Step:
    """One step on one rank: when it began, and its spans."""

    begin: float
    spans: tuple[Span, ...]


def in_time_of(rank_0: Callable[[float], float], steps: Sequence[tuple[float, Sequence[Span]]]) -> tuple[Step, ...]:
    """Recorded steps in rank 0's time."""
    return tuple(
        Step(rank_0(begin), tuple(replace(s, start=rank_0(s.start), finish=rank_0(s.finish)) for s in spans))
        for begin, spans in steps
    )


def trace_events(plan: Plan, ranks: Sequence[Sequence[Step]], predicted: Sequence[Event]) -> dict[str, Any]:
    """The trace of all ranks; `predicted` are the events of one predicted step that begins at 0, none if unknown."""
    begins = [min(steps) for steps in zip(*([step.begin for step in rank] for rank in ranks), strict=True)]
    origin = begins[0] if begins else 0.0
    events: list[Event] = [event for event in predicted if event["ph"] == "M"]
    for begin in begins:
        shift = (begin - origin) * 1e6
        events += [{**event, "ts": event["ts"] + shift} for event in predicted if event["ph"] != "M"]
    events.append({"ph": "M", "name": "process_name", "pid": MEASURED, "args": {"name": "measured"}})
    lanes = _lanes(plan, ranks)
    for (mesh, rank, receives), tid in lanes.items():
        shared = sum(1 for m, _, r in lanes if (m, r) == (mesh, receives)) > 1
        name = f"submesh {list(plan.stages).index(mesh)}{f' on rank {rank}' if shared else ''}"
        named = {"name": f"{name}{' receives' if receives else ''}"}
        events.append({"ph": "M", "name": "thread_name", "pid": MEASURED, "tid": tid, "args": named})
    for rank, steps in enumerate(ranks):
        for span in (span for step in steps for span in step.spans):
            number = f" {span.microbatch}" if span.microbatch >= 0 else ""
            events.append(
                {
                    "ph": "X",
                    "name": span.name + number,
                    "cat": span.kind,
                    "pid": MEASURED,
                    "tid": lanes[(span.mesh, rank, span.kind == "receive")],
                    "ts": (span.start - origin) * 1e6,
                    "dur": (span.finish - span.start) * 1e6,
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _lanes(plan: Plan, ranks: Sequence[Sequence[Step]]) -> dict[tuple[str, int, bool], int]:
    """(submesh, rank, whether it shows what is received) -> thread number, in that order."""
    found = {
        (span.mesh, rank, span.kind == "receive")
        for rank, steps in enumerate(ranks)
        for step in steps
        for span in step.spans
    }
    order = list(plan.stages)
    return {lane: i for i, lane in enumerate(sorted(found, key=lambda x: (order.index(x[0]), x[2], x[1])))}


def write(path: str, trace: Mapping[str, Any]) -> None:
    """Write a trace; CompileError where the file cannot be written."""
    with written_whole(path, "trace") as file:
        file.write(json.dumps(trace).encode())


def predicted_seconds(module: ir.Module, plan: Plan) -> dict[str, float]:
    """Seconds of one run of each stage function, or of several in one program, where the plan says it."""
    found: dict[str, float] = {}
    for name, function in functions(module).items():
        if alpa.COST in function.attributes:
            parts = ir.DictAttr(ir.DictAttr(function.attributes[alpa.COST])["seconds"])
            found[name] = sum(float(ir.FloatAttr(parts[i].attr).value) for i in range(len(parts)))
    for name, joined in programs_of(plan).items():
        if all(part in found for part in joined):
            found[name] = sum(found[part] for part in joined)
    return found


def profile(
    plan: Plan, predicted: Mapping[str, float], ranks: Sequence[Sequence[Step]], seconds: Sequence[float]
) -> list[str]:
    """The table of `--profile-stages`: medians over the steps; `seconds` are the whole steps' on rank 0.

    The first step of several is left out: in it XLA and the messages warm up.
    """
    warm = [steps[1:] if len(steps) > 1 else steps for steps in ranks]
    lines = [f"{'submesh':>7}  {'function':<28}{'runs':>5}{'measured ms':>13}{'predicted ms':>14}{'ratio':>10}"]
    for number, mesh in enumerate(plan.stages):
        spans = [s for steps in warm for step in steps for s in step.spans if s.mesh == mesh and s.kind != "receive"]
        holders = sum(1 for steps in warm if any(s.mesh == mesh for step in steps for s in step.spans))
        count = max(1, holders * len(warm[0]))
        for name in dict.fromkeys(s.name for s in spans):
            took = [s.finish - s.start for s in spans if s.name == name]
            lines.append(f"{number:>7}  {name:<28}{len(took) // count:>5}{_times(median(took), predicted.get(name))}")
        busy = sum(s.finish - s.start for s in spans) / count
        step = median(seconds[-len(warm[0]) :])
        lines.append(f"{number:>7}  {'busy':<28}{'':>5}{busy * 1e3:>13.4g}  {100 * busy / step:.0f} % of the step")
    whole = median(seconds[-len(warm[0]) :])
    lines.append(f"{'':>7}  {'step':<28}{1:>5}{_times(whole, plan.cost)}")
    return lines


def _times(measured: float, predicted: float | None) -> str:
    if not predicted:
        return f"{measured * 1e3:>13.4g}"
    return f"{measured * 1e3:>13.4g}{predicted * 1e3:>14.4g} {measured / predicted:>9.3g}"
