"""`alpa-mlir-report`: a plan as one HTML page with charts and tables, or as a Perfetto trace."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import check_digest, read_plan
from alpa_mlir.dialect.reading import read_text
from alpa_mlir.passes.inter.simulate import Timeline
from alpa_mlir.passes.inter.trace import trace_events
from alpa_mlir.passes.schedule import plan_timeline
from alpa_mlir.tools.diagnostics import guarded, in_file
from alpa_mlir.tools.output import write_outputs
from alpa_mlir.tools.plan_summary import summarize
from alpa_mlir.tools.report_page import page
from alpa_mlir.tools.version import add_version

NAME = "alpa-mlir-report"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on `argv` (default: the process's arguments) and return its exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if not arguments.output and not arguments.trace:
        parser.error("say what to write: -o REPORT.html, --trace TRACE.json, or both")
    module, timeline = _read(arguments.plan)
    files = []
    if arguments.output:
        files.append((arguments.output, report(Path(arguments.plan).stem, module, timeline)))
    if arguments.trace:
        files.append((arguments.trace, trace(timeline)))
    write_outputs(files)
    return 0


def entry() -> NoReturn:
    """The console script."""
    sys.exit(guarded(NAME, main))


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Show a plan: its simulated step, memory, costs, and what else was considered.",
        epilog="The page holds its charts' script and needs no network. A trace opens in ui.perfetto.dev or "
        "chrome://tracing. Exit status: 0 written, 1 one located error and nothing written, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument("plan", metavar="PLAN", help="a plan made by alpa-mlir-plan")
    parser.add_argument("-o", dest="output", metavar="REPORT.html", help="write the page; - is standard output")
    parser.add_argument("--trace", metavar="TRACE.json", help="write the predicted step as a Chrome/Perfetto trace")
    add_version(parser)
    return parser


def report(name: str, module: ir.Module, timeline: Timeline) -> bytes:
    """The HTML page of a plan."""
    return page(name, summarize(module, timeline), timeline).encode()


def trace(timeline: Timeline) -> bytes:
    """The Perfetto trace of a predicted step."""
    return (json.dumps(trace_events(timeline)) + "\n").encode()


def simulated(module: ir.Module, play: Callable[[ir.Module], Timeline | None] = plan_timeline) -> Timeline:
    """The predicted step of a plan; CompileError where it was never priced."""
    timeline = play(module)
    if timeline is None:
        raise CompileError("the plan does not say what its functions cost: make it with alpa-mlir-plan")
    return timeline


def _read(path: str) -> tuple[ir.Module, Timeline]:
    text = read_text(path, "plan", "a plan is MLIR text, this file is not UTF-8")
    try:
        module = parse_module(text, make_context(), path)
        read_plan(module)
        check_digest(module)
        return module, simulated(module)
    except CompileError as e:
        raise in_file(e, path) from None


if __name__ == "__main__":
    entry()
