"""`alpa-mlir-solve`: the intra-operator solver on a public problem instance (google/iopddl's JSON)."""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from alpa_mlir import __version__
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.model_file import read_bytes
from alpa_mlir.tools.diagnostics import guarded
from alpa_mlir.tools.output import write_output

NAME = "alpa-mlir-solve"
EPILOG = """\
Prints cost, seconds and the size of the problem after each reduction. The chain is exact: the cost printed is the
optimum. Exit status: 0 solved, 1 the instance is broken or has no solution within its limit, 2 wrong usage.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = make_parser().parse_args(argv)
    from alpa_mlir.passes.intra.instances import parse_instance, solution_document
    from alpa_mlir.passes.intra.solve import solve

    document = _read(options.instance)
    problem = parse_instance(document, options.instance)
    began = time.monotonic()
    try:
        found = solve(problem, options.solver)
    except CompileError as e:
        raise type(e)(e.message, f"{options.instance}:1:1", e.notes) from None
    seconds = time.monotonic() - began
    if not problem.fits(found.labels):
        raise CompileError("the solution found does not keep the limit", f"{options.instance}:1:1")
    for line in found.steps:
        print(line, file=sys.stderr)
    print(f"cost {found.cost:.0f}, optimal, {seconds:.1f} s", file=sys.stderr if options.output == "-" else sys.stdout)
    if options.output is not None:
        name = str(document["problem"].get("name", options.instance))
        text = json.dumps(solution_document(name, found.labels, found.cost)) + "\n"
        write_output(options.output, text.encode())
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Solve an instance of the intra-operator problem to optimality.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("instance", metavar="INSTANCE", help="JSON, or gzipped JSON; - is standard input")
    parser.add_argument("--solver", default="highs", help="a mixed-integer solver that CVXPY knows (default: highs)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the solution as JSON; - is standard output")
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    return parser


def _read(path: str) -> Any:
    raw = read_bytes(path)
    try:
        return json.loads(gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw)
    except (OSError, EOFError, ValueError) as e:
        raise CompileError(f"not JSON: {e}", f"{path}:1:1") from None


def entry() -> NoReturn:
    """The console script."""
    sys.exit(guarded(NAME, main))


if __name__ == "__main__":
    entry()
