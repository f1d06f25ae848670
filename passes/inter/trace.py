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
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"schedule": timeline.kind}}


def _number(microbatch: int) -> list[str]:
    return [str(microbatch)] if microbatch >= 0 else []
