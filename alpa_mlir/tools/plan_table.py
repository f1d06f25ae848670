"""A plan's figures in the terminal: stages, memory, what dominates, what else was considered."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.table import Table

from alpa_mlir.tools.plan_summary import Alternative, PlanSummary, StageSummary, best_alternatives

BAR = 10
"""Characters of a memory bar."""
NAMED = 3
"""Costs named per stage."""
OTHERS = 8
"""Alternatives that are listed."""


def print_table(summary: PlanSummary, stream: TextIO) -> None:
    """The plan as tables."""
    console = Console(file=stream, width=None if stream.isatty() else 140, highlight=False)
    console.print(_stages(summary))
    if summary.step_seconds is not None:
        waiting = "" if summary.bubble is None else f", bubble {100 * summary.bubble:.1f} %"
        console.print(f"predicted step: {1e3 * summary.step_seconds:.4g} ms{waiting}")
    if summary.searched_seconds and summary.solved_seconds:
        searched, solved = 1e3 * summary.searched_seconds, 1e3 * summary.solved_seconds
        off = 100 * (solved / searched - 1)
        console.print(
            f"stages by formula: {searched:.4g} ms in the search, {solved:.4g} ms solved exactly ({off:+.2f} %)"
        )
    if summary.costs and summary.step_seconds:
        shares = {name: seconds / summary.step_seconds for name, seconds in summary.costs.items()}
        said = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share >= 0.005)
        console.print(f"a submesh's step: {said}")
    if len(summary.considered) > 1:
        console.print(_others(summary))


def _stages(summary: PlanSummary) -> Table:
    count = len(summary.stages)
    parts = [
        f"{count} stage{'s' * (count > 1)}, {summary.microbatches} microbatch{'es' * (summary.microbatches > 1)}",
        *([summary.schedule] if summary.schedule else []),
        *([f"layers {_list(summary.remat)} rematerialised"] if summary.remat else []),
        f"cluster {summary.cluster}",
    ]
    table = Table(title=", ".join(parts))
    for column in ("stage", "layers", "devices", "mesh"):
        table.add_column(column, justify="right")
    for column in ("forward", "backward", "collectives", "update"):
        table.add_column(f"{column}\nms", justify="right")
    table.add_column("memory per device")
    table.add_column("mostly")
    for s in summary.stages:
        backward = (
            None if s.backward_seconds is None is s.weight_seconds else _sum(s.backward_seconds, s.weight_seconds)
        )
        table.add_row(
            str(s.stage),
            _range(s.layers),
            _range((s.devices[0], s.devices[-1])),
            "x".join(str(n) for n in s.mesh),
            _scaled(s.forward_seconds, 1e3),
            _scaled(backward, 1e3),
            _scaled(s.communication_seconds, 1e3),
            _scaled(s.update_seconds, 1e3),
            _memory(s, s.memory_limit),
            _mostly(s),
        )
    return table


def _sum(*seconds: float | None) -> float:
    return sum(s or 0.0 for s in seconds)


def _memory(stage: StageSummary, limit: int | None) -> str:
    used = stage.peak_bytes if stage.peak_bytes is not None else stage.memory_bytes
    if used is None:
        return ""
    if not limit:
        return f"{_bytes(used)}"
    filled = min(BAR, round(BAR * used / limit))
    return f"{'█' * filled}{'░' * (BAR - filled)} {_bytes(used)} of {_bytes(limit)}"


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def _mostly(stage: StageSummary) -> str:
    total = sum(stage.costs.values())
    if not total:
        return ""
    largest = list(stage.costs.items())[:NAMED]
    return ", ".join(f"{name} {100 * seconds / total:.0f}\N{NO-BREAK SPACE}%" for name, seconds in largest)


def _others(summary: PlanSummary) -> Table:
    """The best number of microbatches of each schedule and rematerialisation, and by how much it loses."""
    others = best_alternatives(summary)
    title = f"considered: {len(summary.considered)} settings, the best of each kind (estimates)"
    table = Table(title=title)
    for column in ("schedule", "remat", "microbatches", "ms", "against the best", "memory"):
        table.add_column(column, justify="left" if column in ("schedule", "remat") else "right")
    quickest = min((o.seconds for o in others if o.seconds is not None and o.error is None), default=None)
    for other in others[:OTHERS]:
        table.add_row(
            other.schedule,
            other.remat,
            str(other.microbatches),
            _scaled(other.seconds, 1e3),
            _loss(other, quickest),
            "" if other.bytes is None else _bytes(other.bytes),
        )
    return table


def _loss(other: Alternative, quickest: float | None) -> str:
    if other.error is not None:
        return other.error if len(other.error) <= 60 else other.error[:59] + "…"
    if other.seconds is None or not quickest:
        return ""
    return f"+{100 * (other.seconds / quickest - 1):.1f} %"


def _list(numbers: tuple[int, ...]) -> str:
    whole = numbers == tuple(range(numbers[0], numbers[-1] + 1))
    return _range((numbers[0], numbers[-1])) if whole else ",".join(map(str, numbers))


def _range(ends: tuple[int, int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"


def _scaled(value: float | None, factor: float) -> str:
    return "" if value is None else f"{value * factor:.4g}"
