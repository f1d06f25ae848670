"""`alpa-mlir-opt`: run passes over a module, like mlir-opt; our passes and upstream's mix freely.

Every pass is a flag, `--alpa-layers="count=4"` or `--cse`, run in the order of the command line; or all of them
at once as `--pass-pipeline="builtin.module(alpa-normalize,cse)"`.  Test files may hold several modules
(`-split-input-file`, cut at `// -----`) and their own expected messages (`-verify-diagnostics`).
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from jaxlib.mlir import ir

import alpa_mlir.passes.all  # noqa: F401  (registers every pass)
from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import BYTECODE_MAGIC, make_context, print_module
from alpa_mlir.dialect.diagnostics import CompileError, Remark
from alpa_mlir.model_file import module_from_bytes, read_bytes
from alpa_mlir.passes.explain import Explain
from alpa_mlir.passes.pipeline import Step, parse_pipeline, run_pipeline, step_from_flag
from alpa_mlir.passes.registry import did_you_mean, options_of, registered
from alpa_mlir.passes.shard import Shard
from alpa_mlir.passes.upstream import NAMES
from alpa_mlir.tools.clock import Clock
from alpa_mlir.tools.diagnostics import UsageError, guarded, in_file, print_remarks, source_name
from alpa_mlir.tools.expectations import expected_in, mismatches, produced_by
from alpa_mlir.tools.output import write_output
from alpa_mlir.tools.version import add_version
from alpa_mlir.value_names import name_values

NAME = "alpa-mlir-opt"
SEPARATOR = "// -----"
DIALECTS = (
    "affine", "arith", "builtin", "cf", "chlo", "complex", "func", "gpu", "llvm", "math", "memref", "mhlo", "mpmd",
    "nvgpu", "nvvm", "scf", "sdy", "shape", "stablehlo", "tensor", "ub", "vector", "vhlo",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on `argv` (default: the process's arguments) and return its exit status."""
    rest, steps = take_passes(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    options, unknown = parser.parse_known_args(rest)
    for word in unknown:
        known = [*NAMES, *registered(), *(o.lstrip("-") for o in parser._option_string_actions)]
        raise UsageError(f"unknown argument '{word}'{did_you_mean(word.lstrip('-').split('=')[0], known)}")
    for listing, wanted in ((pass_list, options.list_passes), (dialect_list, options.show_dialects)):
        if wanted:
            print(listing(), end="")
            return 0
    return _process(options, steps)


def entry() -> NoReturn:
    """The console script."""
    sys.exit(guarded(NAME, main))


def make_parser() -> argparse.ArgumentParser:
    """The flags other than passes."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Run passes over a StableHLO module, in the order given.",
        epilog=f"Each pass is a flag --PASS or --PASS='option=value …'. Passes:\n\n{pass_list()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="FILE", nargs="?", default="-", help="StableHLO in any form; - (default) is standard input")
    add("-o", dest="output", metavar="FILE", help="where to write; - (default) is standard output")
    add("--pass-pipeline", metavar="TEXT", help="a pipeline, e.g. builtin.module(alpa-normalize,cse)")
    add("--split-input-file", action="store_true", help=f"the file holds several modules, cut at lines '{SEPARATOR}'")
    add("--verify-diagnostics", action="store_true", help="check the messages against expected-error@+1 {{…}} comments")
    add(
        "--verify-each", nargs="?", const="true", default="true", choices=("true", "false", "1", "0"),
        help="verify the module after every pass (default)",
    )  # fmt: skip
    add("--mlir-print-ir-before-all", action="store_true", help="print the module before each pass, to stderr")
    add("--mlir-print-ir-after-all", action="store_true", help="print the module after each pass, to stderr")
    add("--mlir-timing", action="store_true", help="print the seconds of each phase, to stderr")
    add("--mlir-print-debuginfo", action="store_true", help="print locations")
    add("--emit-bytecode", action="store_true", help="write MLIR bytecode instead of text")
    add("--list-passes", action="store_true", help="print all passes with their options, and exit")
    add("--show-dialects", action="store_true", help="print the dialects that the parser knows, and exit")
    add_version(parser)
    return parser


def pass_list() -> str:
    """All passes, ours with options first, then the names of upstream's."""
    lines = []
    for name, cls in registered().items():
        lines.append(f"  --{name:<28} {(cls.__doc__ or '').strip().splitlines()[0]}")
        lines.extend(f"      {o.name}={o.default or '…':<24} {o.meaning}" for o in options_of(cls))
    lines.append("")
    lines.extend(f"  --{name}" for name in sorted(NAMES))
    return "\n".join(lines) + "\n"


def dialect_list() -> str:
    """The dialects loaded in our contexts, one a line."""
    context = make_context()
    for name in DIALECTS:
        context.get_dialect_descriptor(name)
    return "\n".join(DIALECTS) + "\n"


_FLAG = re.compile(r"--?(?P<name>[a-z][a-z0-9-]+)(?:=(?P<value>.*))?$", re.DOTALL)


def take_passes(argv: Sequence[str]) -> tuple[list[str], list[Step]]:
    """Split a command line into what argparse reads and the passes, in order.

    MLIR's tools accept one dash for any flag; argparse gets two.
    """
    rest: list[str] = []
    steps: list[Step] = []
    words = iter(argv)
    for word in words:
        match = _FLAG.match(word)
        if word == "-o" or match is None:
            rest.append(word)
        elif match["name"] in registered() or match["name"] in NAMES:
            steps.append(step_from_flag(match["name"], _unquoted(match["value"])))
        elif match["name"] == "pass-pipeline":
            text = match["value"] if match["value"] is not None else next(words, None)
            if text is None:
                raise UsageError("--pass-pipeline needs a value")
            steps.extend(parse_pipeline(text))
        else:
            rest.append("--" + word.lstrip("-"))
    return rest, steps


def _unquoted(value: str | None) -> str | None:
    """The options of `--pass="{a=1}"` and `--pass="a=1"` alike."""
    return value[1:-1] if value and value[0] == "{" and value[-1] == "}" else value


@dataclass
class _Outcome:
    """What came of one module of the input."""

    module: ir.Module | None = None
    error: CompileError | None = None
    remarks: list[Remark] = field(default_factory=list)


def _process(options: argparse.Namespace, steps: Sequence[Step]) -> int:
    raw = read_bytes(options.file)
    filename = source_name(options.file)
    textual = not raw.startswith(BYTECODE_MAGIC)
    chunks = split_input(raw) if options.split_input_file and textual else [raw]
    clock = Clock(options.mlir_timing)
    failures: list[str] = []
    outputs: list[bytes] = []
    for chunk in chunks:
        outcome = _run_passes(chunk, options, steps, clock)
        if options.verify_diagnostics:
            expected = expected_in(chunk.decode(errors="replace"))
            failures.extend(mismatches(expected, produced_by(outcome.error, outcome.remarks), filename))
        else:
            print_remarks(outcome.remarks, filename)
            if outcome.error is not None:
                failures.append(str(in_file(outcome.error, filename)))
        if outcome.module is not None:
            clock.begin("write the module")
            outputs.append(_encoded(outcome.module, options))
            clock.end()
    for failure in failures:
        print(failure, file=sys.stderr)
    if not failures:
        separator = b"" if options.emit_bytecode else f"{SEPARATOR}\n".encode()
        write_output(options.output or "-", separator.join(outputs))
    return 1 if failures else 0


def split_input(raw: bytes) -> list[bytes]:
    """The modules of a file cut at `// -----` lines, each after as many empty lines as stood before it.

    So every position in a piece is its position in the file. Pieces without any text are left out.
    """
    pieces: list[list[bytes]] = [[]]
    for number, line in enumerate(raw.split(b"\n")):
        if line.strip().startswith(SEPARATOR.encode()):
            pieces.append([b""] * (number + 1))
        else:
            pieces[-1].append(line)
    return [b"\n".join(piece) for piece in pieces if any(line.strip() for line in piece)]


def _run_passes(raw: bytes, options: argparse.Namespace, steps: Sequence[Step], clock: Clock) -> _Outcome:
    outcome = _Outcome()
    verify_each = options.verify_each in ("true", "1")
    clock.begin("read the program")
    try:
        module = module_from_bytes(raw, make_context(), "-")
        if verify_each:
            alpa.verify(module)
        run_pipeline(
            module,
            [_with_names(step, module, raw) for step in steps],
            outcome.remarks,
            verify_each=verify_each,
            before_each=_before_each(options, clock),
            after_each=_dump("After") if options.mlir_print_ir_after_all else None,
        )
        outcome.module = module
    except CompileError as e:
        outcome.error = e
    clock.end()
    return outcome


def _with_names(step: Step, module: ir.Module, raw: bytes) -> Step:
    """A pass that explains, with the values that it is asked about found in the input."""
    if isinstance(step, Explain):
        return replace(step, only=name_values(module, raw, step.only))
    if isinstance(step, Shard) and step.explain:
        return replace(step, explain=name_values(module, raw, step.explain))
    return step


def _before_each(options: argparse.Namespace, clock: Clock) -> Callable[[str, ir.Module], None] | None:
    if options.mlir_timing:
        return lambda step, module: clock.begin(step)
    return _dump("Before") if options.mlir_print_ir_before_all else None


def _dump(when: str) -> Callable[[str, ir.Module], None]:
    return lambda step, module: print(
        f"// -----// IR Dump {when} {step} //----- //\n{print_module(module)}", file=sys.stderr
    )


def _encoded(module: ir.Module, options: argparse.Namespace) -> bytes:
    if options.emit_bytecode:
        buffer = io.BytesIO()
        module.operation.write_bytecode(buffer)
        return buffer.getvalue()
    return print_module(module, locations=options.mlir_print_debuginfo).encode()
