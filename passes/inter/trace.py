"""A simulated step as a Chrome/Perfetto trace (Trace Event Format, complete events, microseconds)."""

from __future__ import annotations

from typing import Any

from alpa_mlir.passes.inter.simulate import Timeline


def trace_events(timeline: Timeline, process: int = 0, name: str = "predicted") -> dict[str, Any]:
    """One process with a thread per lane, one box per part of a microbatch."""
    lanes = sorted({s.lane for s in timeline.spans})
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}]
    events += [
        {"ph": "M", "name": "thread_name", "pid": process, "tid": lane, "args": {"name": f"submesh {lane}"}}
        for lane in lanes
    ]
    several = len({s.stage for s in timeline.spans}) > len(lanes)
    for span in timeline.spans:
        words = [span.kind, *([f"stage {span.stage}"] if several else []), *_number(span.microbatch)]
        times = {"ts": span.start * 1e6, "dur": (span.finish - span.start) * 1e6}
        events.append({"ph": "X", "name": " ".join(words), "cat": span.kind, "pid": process, "tid": span.lane, **times})
    events += _moves(timeline, process, 1 + max(lanes, default=0))
    events += _memory(timeline, process)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"schedule": timeline.kind}}


def _moves(timeline: Timeline, process: int, first: int) -> list[dict[str, Any]]:
    """A thread for each pair of submeshes with the transfers between them."""
    pairs = sorted({(m.source, m.target) for m in timeline.moves})
    events: list[dict[str, Any]] = []
    for thread, (source, target) in enumerate(pairs, start=first):
        named = {"name": f"submesh {source} to {target}"}
        events.append({"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": named})
        for move in (m for m in timeline.moves if (m.source, m.target) == (source, target)):
            name = " ".join(["transfer", *_number(move.microbatch)])
            times = {"ts": move.start * 1e6, "dur": (move.finish - move.start) * 1e6}
            sizes = {"args": {"bytes": move.bytes}}
            events.append({"ph": "X", "name": name, "cat": "transfer", "pid": process, "tid": thread, **times, **sizes})
    return events


def _memory(timeline: Timeline, process: int) -> list[dict[str, Any]]:
    """A counter for each submesh: bytes that one of its devices holds."""
    return [
        {"ph": "C", "name": f"bytes on submesh {lane}", "pid": process, "ts": at * 1e6, "args": {"bytes": size}}
        for lane, curve in enumerate(timeline.memory)
        for at, size in curve
    ]


def _number(microbatch: int) -> list[str]:
    return [str(microbatch)] if microbatch >= 0 else []
