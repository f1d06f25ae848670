"""`alpa-mlir-export`: write a built-in model, or one's own jax function, as StableHLO with argument roles.

Nothing is allocated: the step is traced on shapes, so the largest named sizes export in seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jaxlib.mlir import ir

from alpa_mlir import foreign, lowering
from alpa_mlir.dialect.context import passmanager, print_module, stablehlo
from alpa_mlir.models import ALIASES, MODELS, Model, TrainStep
from alpa_mlir.tools.diagnostics import UsageError, guarded
from alpa_mlir.tools.output import write_outputs
from alpa_mlir.tools.version import add_version

NAME = "alpa-mlir-export"
EPILOG = """\
One's own function: NAME is package.module:function or path/file.py:function, with example arguments in a tuple
function_arguments beside it (arrays or jax.ShapeDtypeStruct) and, optionally, function_roles ("state", "batch" or
"constant" per argument; without it, what jax.jit donates is state and the rest batch). A function without parameters
may instead return (step, arguments[, roles]) or an alpa_mlir.models.TrainStep.

Examples:
  alpa-mlir-export gpt -o gpt.mlir
  alpa-mlir-export gpt --size 39B --batch 512 --remat -o gpt-39b.mlir
  alpa-mlir-export moe --inference -o moe.mlir
  alpa-mlir-export gpt -o gpt.mlir --inputs gpt.npz      and start values: a text to learn
  alpa-mlir-export my_project.train:step -o step.mlir

Exit status: 0 done, 1 the program is at fault (file:line:col: error: …), 2 wrong usage.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on `argv` (default: the process's arguments) and return its exit status.

    Raises `UsageError` and `CompileError`, which `guarded` turns into messages.
    """
    options = make_parser().parse_args(argv)
    if options.list:
        print(listing(), end="")
        return 0
    if options.name is None:
        raise UsageError("the following arguments are required: NAME")
    step = select_step(options)
    with foreign.located_errors(lowering.function_location(step.function)):
        module = lowering.lower(step, options.platform)
    files = [(options.output, encode(module, options.form, options.locations))]
    if options.inputs is not None:
        files.append((options.inputs, initial_inputs(options)))
    write_outputs(files)
    return 0


def entry() -> NoReturn:
    """The console script."""
    # Tracing needs no accelerator; without this jax would take hold of one.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(guarded(NAME, main))


def make_parser() -> argparse.ArgumentParser:
    """The command's options; those of the models come from the fields of their configurations."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Write a built-in model, or one's own jax function, as StableHLO with argument roles.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="?", type=lambda name: ALIASES.get(name, name),
        help=f"{', '.join(MODELS)}, or package.module:function",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="where to write; - (default) is stdout")
    parser.add_argument("--list", action="store_true", help="print the models with sizes and options, and exit")
    add_version(parser)
    parser.add_argument("--inference", action="store_true", help="the forward pass alone; parameters are constant")
    parser.add_argument("--size", metavar="SIZE", help="a named size, see --list; default: a small one")
    parser.add_argument(
        "--platform", choices=("cpu", "cuda", "rocm", "tpu"), default="cpu",
        help="lower jax primitives as for this platform (none is needed); default cpu",
    )  # fmt: skip
    parser.add_argument(
        "--inputs", metavar="FILE.npz",
        help="also write initial values of a built-in training step, as arg0, arg1, … for alpa-mlir-run --inputs",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial values; default 0")
    parser.add_argument("--locations", action="store_true", help="keep Python source locations")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--bytecode", dest="form", action="store_const", const="bytecode", help="MLIR bytecode")
    form.add_argument(
        "--portable", dest="form", action="store_const", const="portable",
        help="portable artifact (VHLO bytecode) of this StableHLO version",
    )  # fmt: skip
    form.set_defaults(form="text")
    sizes = parser.add_argument_group("options of the models", "They change fields of the named size.")
    for name, (example, users) in model_options().items():
        whose = "" if len(users) == len(MODELS) else f" ({', '.join(users)})"
        keywords: dict[str, Any] = {"help": example.metadata["help"].replace("%", "%%") + whose}
        if isinstance(example.default, bool):
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            keywords |= {"type": type(example.default), "metavar": type(example.default).__name__.upper()}
        flag = f"--{name.replace('_', '-')}"
        sizes.add_argument(flag, dest=name, default=argparse.SUPPRESS, **keywords)
    return parser


def model_options() -> dict[str, tuple[dataclasses.Field[Any], list[str]]]:
    """Each field of any model's configuration, with the models that have it, in order of appearance."""
    found: dict[str, tuple[dataclasses.Field[Any], list[str]]] = {}
    for model in MODELS.values():
        for field in dataclasses.fields(model.config):
            found.setdefault(field.name, (field, []))[1].append(model.name)
    return found


def given_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a model's configuration that the command line sets."""
    return {name: getattr(options, name) for name in model_options() if hasattr(options, name)}


def initial_inputs(options: argparse.Namespace) -> bytes:
    """An .npz file with the initial value of every argument of `@main`, in order."""
    model = MODELS[options.name]
    values = model.initial_values(configure(model, options.size, given_fields(options)), options.seed)
    buffer = io.BytesIO()
    np.savez(buffer, **{f"arg{i}": leaf for i, leaf in enumerate(jax.tree.leaves(values))})
    return buffer.getvalue()


def select_step(options: argparse.Namespace) -> TrainStep:
    """The step that the command line asks for."""
    given = given_fields(options)
    model = MODELS.get(options.name)
    if options.inputs is not None and (model is None or options.inference):
        raise UsageError("--inputs is for training steps of built-in models")
    if options.seed < 0:
        raise UsageError("--seed must not be negative")
    if model is not None:
        config = configure(model, options.size, given)
        return model.build_inference(config) if options.inference else model.build(config)
    if ":" not in options.name:
        raise UsageError(
            f"no model {options.name!r}: there are {', '.join(MODELS)}, or name a function as package.module:function"
        )
    wrong = [*given, *(["inference"] if options.inference else []), *(["size"] if options.size else [])]
    if wrong:
        raise UsageError(f"--{wrong[0].replace('_', '-')} is for built-in models, not for {options.name}")
    try:
        return foreign.load_step(options.name)
    except foreign.UnknownNameError as e:
        raise UsageError(str(e)) from None


def configure(model: Model, size: str | None, given: dict[str, Any]) -> Any:
    """The configuration of `model` at a named size with some fields changed. Raises `UsageError`."""
    if size is not None and size not in model.presets:
        raise UsageError(f"{model.name} has no size {size!r}: there are {', '.join(model.presets)}")
    base = model.config() if size is None else model.presets[size]
    fields = {field.name for field in dataclasses.fields(base)}
    for name in given:
        if name not in fields:
            raise UsageError(f"{model.name} has no option --{name.replace('_', '-')}")
    try:
        return dataclasses.replace(base, **given)
    except ValueError as e:
        raise UsageError(f"{model.name}: {e}") from None


def listing() -> str:
    """The models with their parameter counts and options, for `--list`."""
    return "\n".join(_describe(model) for model in MODELS.values())


def _describe(model: Model) -> str:
    def lines() -> Iterator[str]:
        yield f"{model.name}: {model.summary}"
        for size, config in (("(default)", model.config()), *model.presets.items()):
            yield f"  {size:<10} {model.build(config).parameter_count:>15,} parameters"
        defaults = (f"--{f.name.replace('_', '-')} {f.default}" for f in dataclasses.fields(model.config))
        yield f"  default: {' '.join(defaults)}"

    return "\n".join(lines()) + "\n"


def encode(module: ir.Module, form: str, locations: bool) -> bytes:
    """The module as text, bytecode or portable artifact; afterwards `module` must not be used again."""
    if form == "text":
        return print_module(module, locations=locations).encode()
    if not locations:
        passmanager.PassManager.parse("builtin.module(strip-debuginfo)", module.context).run(module.operation)
    if form == "portable":
        return bytes(stablehlo.serialize_portable_artifact(module, stablehlo.get_current_version()))
    buffer = io.BytesIO()
    module.operation.write_bytecode(buffer)
    return bytes(buffer.getvalue())


if __name__ == "__main__":
    entry()
