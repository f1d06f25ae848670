"""A plan as one HTML page that needs nothing else: charts by plotly, whose script is part of the page, and tables.

The charts: what each submesh does when, and what is under way between them; how much memory its devices hold
over the step; what a step's time goes to; the settings that were considered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.inter.simulate import Timeline
from alpa_mlir.tools.plan_summary import PlanSummary, best_alternatives

COLOURS = {
    "forward": "#4c78a8",
    "backward": "#f58518",
    "weight": "#e9b44c",
    "update": "#54a24b",
    "prologue": "#9d755d",
    "accumulate": "#b279a2",
    "transfer": "#bab0ac",
}
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #ddd}"
    "th{font-weight:600;background:#f4f4f4}td:first-child,th:first-child{text-align:left}"
    "h2{margin-top:2em}code{background:#f4f4f4;padding:0 .3em}"
)


def page(name: str, summary: PlanSummary, timeline: Timeline) -> str:
    """The HTML of a priced plan. CompileError where plotly is not installed."""
    try:
        from plotly import graph_objects
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise CompileError("reports need plotly: pip install 'alpa_mlir[report]'") from None
    charts = (
        ("What happens when", _timeline(graph_objects, timeline)),
        ("Memory per device", _memory(graph_objects, summary, timeline)),
        ("Where a step's time goes", _costs(graph_objects, summary, timeline)),
    )
    body = [_head(name, summary), "<h2>Stages</h2>", _stages(summary)]
    for number, (title, figure) in enumerate(charts):
        body.append(f"<h2>{title}</h2>")
        # A number of its own for each chart: the page is the same whenever it is made.
        body.append(figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"chart-{number}"))
    if summary.considered:
        body += ["<h2>What else was considered</h2>", _considered(summary)]
    head = f"<meta charset='utf-8'><title>{escape(name)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script>"
    return f"<!DOCTYPE html>\n<html><head>{head}</head><body>\n" + "\n".join(body) + "\n</body></html>\n"


def _head(name: str, summary: PlanSummary) -> str:
    step, bubble = summary.step_seconds or 0.0, summary.bubble or 0.0
    remat = f"layers {', '.join(map(str, summary.remat))} rematerialised, " if summary.remat else ""
    return (
        f"<h1>{escape(name)}</h1><p>{len(summary.stages)} stages, {summary.microbatches} microbatches, "
        f"{summary.schedule}, {remat}cluster {escape(summary.cluster)}. Predicted step <b>{1e3 * step:.4g} ms</b>, "
        f"bubble {100 * bubble:.1f} %, {(summary.transfer_bytes or 0) / 1e6:.4g} MB between submeshes. "
        f"{_agreement(summary)}Digest <code>{summary.digest[:12]}</code></p>"
    )


def _agreement(summary: PlanSummary) -> str:
    if not summary.searched_seconds or not summary.solved_seconds:
        return ""
    off = 100 * (summary.solved_seconds / summary.searched_seconds - 1)
    return (
        f"Stages by formula: {_milliseconds(summary.searched_seconds)} ms in the search, "
        f"{_milliseconds(summary.solved_seconds)} ms solved exactly ({off:+.2f} %). "
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(h)}</th>" for h in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows]
    return "<table>" + "".join(lines) + "</table>"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.4g}"


def _megabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:.4g}"


def _stages(summary: PlanSummary) -> str:
    header = ("stage", "layers", "devices", "mesh", "forward ms", "backward ms", "weight ms", "collectives ms")
    rows = [
        (
            f"{s.stage} on {s.submesh}",
            f"{s.layers[0]}-{s.layers[1]}",
            f"{s.devices[0]}-{s.devices[-1]}",
            "x".join(map(str, s.mesh)),
            *(
                _milliseconds(t)
                for t in (s.forward_seconds, s.backward_seconds, s.weight_seconds, s.communication_seconds)
            ),
            _milliseconds(s.update_seconds),
            _megabytes(s.peak_bytes),
            ", ".join(f"{name} {_milliseconds(t)}" for name, t in list(s.costs.items())[:4]),
        )
        for s in summary.stages
    ]
    return _table((*header, "update ms", "peak MB", "most of a step, ms"), rows)


def _considered(summary: PlanSummary) -> str:
    others = best_alternatives(summary)
    best = min((o.seconds for o in others if o.seconds and o.error is None), default=None)
    header = ("schedule", "remat", "microbatches", "estimated ms", "against the best", "MB per device")
    rows = []
    for o in others:
        loss = f"+{100 * (o.seconds / best - 1):.1f} %" if o.seconds and best and o.error is None else o.error or ""
        rows.append((o.schedule, o.remat, str(o.microbatches), _milliseconds(o.seconds), loss, _megabytes(o.bytes)))
    return _table(header, rows)


def _timeline(go: Any, timeline: Timeline) -> Any:
    """Horizontal bars: one row per submesh and one per pair of submeshes with transfers."""
    rows: dict[str, dict[str, list[Any]]] = {}

    def add(kind: str, row: str, start: float, finish: float, words: str) -> None:
        boxes = rows.setdefault(kind, {"base": [], "x": [], "y": [], "text": []})
        for key, value in (("base", 1e3 * start), ("x", 1e3 * (finish - start)), ("y", row), ("text", words)):
            boxes[key].append(value)

    for s in timeline.spans:
        number = f" of microbatch {s.microbatch}" if s.microbatch >= 0 else ""
        stage = f", stage {s.stage}" if s.stage >= 0 else ""
        add(s.kind, f"submesh {s.lane}", s.start, s.finish, f"{s.kind}{number}{stage}")
    for m in timeline.moves:
        words = f"{m.bytes / 1e6:.4g} MB of microbatch {m.microbatch}"
        add("transfer", f"{m.source} to {m.target}", m.start, m.finish, words)
    figure = go.Figure()
    for kind in [k for k in COLOURS if k in rows]:
        figure.add_bar(
            orientation="h", name=kind, marker_color=COLOURS[kind], marker_line={"width": 0.5, "color": "white"},
            hovertemplate="%{text}<br>%{base:.4g} ms, %{x:.4g} ms long<extra></extra>", textposition="none",
            **rows[kind],
        )  # fmt: skip
    names = list(dict.fromkeys(y for boxes in rows.values() for y in boxes["y"]))
    order = sorted(names, key=lambda n: (not n.startswith("submesh"), [int(w) for w in n.split() if w.isdigit()]))
    figure.update_layout(barmode="overlay", height=120 + 36 * len(order), xaxis_title="ms", template="plotly_white")
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1])
    return figure


def _memory(go: Any, summary: PlanSummary, timeline: Timeline) -> Any:
    figure = go.Figure()
    for lane, curve in enumerate(timeline.memory):
        points = [*curve, (timeline.makespan, curve[-1][1])]
        figure.add_scatter(
            x=[1e3 * at for at, _ in points], y=[size / 1e6 for _, size in points], name=f"submesh {lane}",
            line_shape="hv", mode="lines",
        )  # fmt: skip
    peak = max(timeline.peak_bytes)
    if summary.memory_limit and summary.memory_limit < 3 * peak:
        figure.add_hline(y=summary.memory_limit / 1e6, line_dash="dash", annotation_text="limit")
    figure.update_layout(height=360, xaxis_title="ms", yaxis_title="MB", template="plotly_white")
    figure.update_yaxes(rangemode="tozero")
    return figure


def _costs(go: Any, summary: PlanSummary, timeline: Timeline) -> Any:
    """Stacked bars: a step of each submesh by what takes the time; the rest is idle."""
    lanes = list(dict.fromkeys(s.submesh for s in summary.stages))
    by_lane: dict[str, dict[str, float]] = {lane: {} for lane in lanes}
    for stage in summary.stages:
        for name, seconds in stage.costs.items():
            by_lane[stage.submesh][name] = by_lane[stage.submesh].get(name, 0.0) + seconds
    for number, lane in enumerate(lanes):
        collected = sum(s.finish - s.start for s in timeline.lane(number) if s.kind == "accumulate")
        by_lane[lane]["accumulate"] = collected
        by_lane[lane]["idle"] = max(0.0, timeline.makespan - sum(by_lane[lane].values()))
    figure = go.Figure()
    for name in [*(n for n in summary.costs if n != "idle"), "idle"]:
        colour = {"marker_color": "#eeeeee"} if name == "idle" else {}
        figure.add_bar(x=lanes, y=[1e3 * by_lane[lane].get(name, 0.0) for lane in lanes], name=name, **colour)
    figure.update_layout(barmode="stack", height=400, yaxis_title="ms of a step", template="plotly_white")
    return figure
