"""`alpa-mlir-solve`: the intra-operator solver on a public problem instance (google/iopddl's JSON)."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from alpa_mlir import __version__
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.reading import LARGEST_FILE
from alpa_mlir.model_file import read_bytes
from alpa_mlir.passes.intra.problem import Progress, Remaining, Solution, endless, quiet
from alpa_mlir.tools.diagnostics import guarded
from alpa_mlir.tools.output import write_output

NAME = "alpa-mlir-solve"
EPILOG = """\
Prints the cost, the proven bound (no solution costs less), the gap between them and the seconds it took; "optimal" only
where they meet. On a terminal the search shows how far it is. Without --time-limit work is counted, not seconds, and
the solution is the same in every run and on every machine.
Exit status: 0 solved, 1 the instance is broken or no solution within its limit was found, 2 wrong usage.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = make_parser().parse_args(argv)
    from alpa_mlir.passes.intra.instances import parse_instance, solution_document
    from alpa_mlir.passes.intra.solve import solve

    began = time.monotonic()
    document = _read(options.instance)
    problem = parse_instance(document, options.instance)
    started = time.monotonic()
    try:
        remaining = _remaining(began, options.time_limit)
        found = solve(
            problem,
            options.solver,
            engine=options.engine,
            progress=_progress(),
            stop=lambda: remaining() <= 0,
            remaining=remaining,
        )
    except CompileError as e:
        raise type(e)(e.message, f"{options.instance}:1:1", e.notes) from None
    seconds = time.monotonic() - started
    if not problem.fits(found.labels):
        raise CompileError("the solution found does not keep the limit", f"{options.instance}:1:1")
    for line in found.steps:
        print(line, file=sys.stderr)
    line = f"cost {found.cost:.10g}, bound {found.bound:.10g}, {_gap(found)}, {seconds:.1f} s"
    print(line, file=sys.stderr if options.output == "-" else sys.stdout)
    if options.output is not None:
        name = str(document["problem"].get("name", options.instance))
        text = json.dumps(solution_document(name, found)) + "\n"
        write_output(options.output, text.encode())
    return 0


def _gap(found: Solution) -> str:
    return "optimal" if found.optimal else f"gap {100 * found.gap:.3g} %"


def _progress() -> Progress:
    """Where the search is, on one line that is written over; silent unless standard error is a terminal."""
    if not sys.stderr.isatty():
        return quiet
    return lambda text: print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _remaining(began: float, limit: float | None) -> Remaining:
    return endless if limit is None else lambda: began + limit - time.monotonic()


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Solve an instance of the intra-operator problem, with a bound on what a better solution may cost.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("instance", metavar="INSTANCE", help="JSON, or gzipped JSON; - is standard input")
    parser.add_argument("--solver", default="highs", help="a mixed-integer solver that CVXPY knows (default: highs)")
    parser.add_argument(
        "--engine",
        choices=["auto", "highs", "search"],
        default="auto",
        help="highs: branch and bound to the optimum; search: prices, messages and local steps, with a bound; "
        "auto (default): the second where memory binds and the problem is large",
    )
    parser.add_argument(
        "--time-limit",
        metavar="SECONDS",
        type=_seconds,
        help="end the search early; the solution then depends on the machine and its load",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the solution as JSON; - is standard output")
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("seconds above zero")
    return value


def _read(path: str) -> Any:
    raw = read_bytes(path)
    try:
        return json.loads(_decompressed(raw, path) if raw.startswith(b"\x1f\x8b") else raw)
    except (OSError, EOFError, ValueError, RecursionError) as e:
        raise CompileError(f"not JSON: {e}", f"{path}:1:1") from None


def _decompressed(raw: bytes, path: str) -> bytes:
    """What was gzipped, which may be a thousand times as long."""
    with gzip.open(io.BytesIO(raw)) as file:
        found = file.read(LARGEST_FILE + 1)
    if len(found) > LARGEST_FILE:
        raise CompileError(f"more than {LARGEST_FILE // 2**30} GiB when decompressed", f"{path}:1:1")
    return found


def entry() -> NoReturn:
    """The console script."""
    sys.exit(guarded(NAME, main))


if __name__ == "__main__":
    entry()
