"""`alpa-normalize`: any StableHLO program as one function of plain, simplified ops with roles on its arguments.

The passes after this one may rely on it: one block of ops that say what they mean by themselves.  See level 1
in docs/ir.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.context import functions, passmanager
from alpa_mlir.dialect.diagnostics import CompileError, Remark, from_mlir_error, location_text
from alpa_mlir.dialect.factors import indivisible_ops
from alpa_mlir.dialect.resources import inline_resources
from alpa_mlir.dialect.rounds import erase_unneeded
from alpa_mlir.dialect.sharding import (
    SHARDING,
    argument_attributes,
    result_attributes,
    set_argument_attributes,
    set_result_attributes,
)
from alpa_mlir.passes.complex_constants import split_complex_constants
from alpa_mlir.passes.domains import mark_nonnegative
from alpa_mlir.passes.empty import replace_empty
from alpa_mlir.passes.inline import inline_calls, require_one_block
from alpa_mlir.passes.registry import Pass, option, register
from alpa_mlir.passes.residuals import keep_little
from alpa_mlir.passes.roles import ALIAS, DONOR, assign_roles
from alpa_mlir.passes.simplify import simplify
from alpa_mlir.passes.splat import CONSTANT, dense_value
from alpa_mlir.passes.strip_mine import GROUPS
from alpa_mlir.passes.tuples import take_tuples_apart
from alpa_mlir.passes.unroll import UNROLL, UNROLL_LAYERS, unroll_loops
from alpa_mlir.passes.unsupported import refuse_hidden_state, remove_unsupported

SMALL_CONSTANT = 1024
"""Bytes up to which a constant that is not a splat is copied to each of its uses."""

_LEGALIZE = (
    "func.func(stablehlo-legalize-composite-to-call,stablehlo-legalize-deprecated-ops,chlo-legalize-to-stablehlo)"
)
_CLEAN = "canonicalize,cse"
_DIALECTS = ("stablehlo", "mhlo", "func", "sdy")
"""What XLA takes, or is taken out on the way."""
_XLA_SHARDING = "mhlo.sharding"


@register
@dataclass(frozen=True)
class Normalize(Pass):
    """One function of plain, simplified StableHLO ops, with a role on each argument.

    Before: any StableHLO module whose entry is `@main`, or the only public function.

    After (level 1): a single public function `@main`. Calls and composites are inlined, chlo ops and deprecated
    StableHLO ops expressed in current ones, constants of complex numbers as two of floats; algebraic identities
    simplified, equal ops merged, dead ones removed.
    Loops whose rounds are known are unrolled, those over many layers put into groups (`alpa.loop_*`).
    Constants that are splats or of at most 1 KiB stand once per use, right before it. Every argument has `alpa.role`,
    every state argument `alpa.updates`, an argument whose root
    or logarithm is taken `alpa.nonnegative`; of the results' attributes only `jax.result_info` and `sdy.sharding` stay.
    GSPMD annotations (`mhlo.sharding`, `@Sharding`) are removed with a remark; Shardy's are kept. A remark tells
    of each op that cannot be split along any dimension, and why.

    Errors: no entry function, recursion, arguments or results that are not tensors,
    dynamic shapes, branches between blocks, chlo ops without a StableHLO form, results of callbacks into Python,
    infeed and outfeed, collectives, roles that contradict each other, state that no result can replace.
    Callbacks and calls with effects whose results nobody needs are left out with a warning.
    """

    name: ClassVar[str] = "alpa-normalize"

    batch_args: str = option("", "numbers of the arguments that hold the batch, e.g. 3,5-7, or none")
    state_args: str = option("", "numbers of the arguments that results replace every step, e.g. 0-2, or none")
    unroll: int = option(
        UNROLL,
        "most ops that a loop of a known number of rounds may become (over layers ten times as many), or 0: keep loops",
    )

    unroll_layers: int = option(
        UNROLL_LAYERS,
        "a loop over more layers than this is planned as loops over groups of them, each in one stage; 0: none is",
    )
    groups: int = option(GROUPS, "most groups that these layers are put into: the largest number that divides them")

    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        """Rewrite `module` in place."""
        _require_level(module)
        main = choose_main(module)
        inline_resources(module)
        refuse_hidden_state(module)
        assign_roles(main, self.state_args, self.batch_args, remarks)
        _upstream(module, _LEGALIZE)
        inline_calls(module)
        _upstream(module, "symbol-dce")
        _remove_gspmd(module, main, remarks)
        remove_unsupported(main, remarks)
        take_tuples_apart(main)
        _require_static(main)
        replace_empty(main)
        split_complex_constants(main)
        _trim_attributes(module, main)
        _upstream(module, _CLEAN)
        simplify(main)
        _upstream(module, _CLEAN)
        if unroll_loops(main, self.unroll, self.unroll_layers, self.groups, remarks):
            simplify(main)
            _upstream(module, _CLEAN)
            block = main.regions[0].blocks[0]
            keep_little(block)
            if erase_unneeded(block):
                _upstream(module, _CLEAN)
        split_constants(main)
        mark_nonnegative(main)
        _report_indivisible(main, remarks)
        module.operation.attributes[alpa.LEVEL] = alpa.string("normal", module.context)


def clean(module: ir.Module) -> None:
    """Simplify a module of level 1 again that was rewritten, and give each use of a small constant its own."""
    main = functions(module)["main"]
    simplify(main)
    _upstream(module, _CLEAN)
    split_constants(main)


def _upstream(module: ir.Module, passes: str) -> None:
    manager = passmanager.PassManager.parse(f"builtin.module({passes})", module.context)
    try:
        manager.run(module.operation)
    except ir.MLIRError as e:
        raise from_mlir_error(e) from None


def inline_composites(module: ir.Module) -> None:
    """Composite ops as calls of the functions that say what they compute, as XLA wants them."""
    _upstream(module, "func.func(stablehlo-legalize-composite-to-call)")


def _require_level(module: ir.Module) -> None:
    level = alpa.get_string(module.operation, alpa.LEVEL)
    if level not in (None, "normal"):
        raise CompileError(f"alpa-normalize takes a program, this module is {level} already", module.operation.location)


def choose_main(module: ir.Module) -> ir.Operation:
    """The entry function, made the only public one and called `main`.

    Raises CompileError where there is none, or several public ones and no `@main`.
    """
    defined = functions(module)
    public = [name for name, function in defined.items() if _is_public(function)]
    if "main" in defined:
        name = "main"
    elif len(public) == 1:
        name = public[0]
    else:
        found = f"it has {', '.join('@' + n for n in public)}" if public else "it has none"
        raise CompileError(
            f"a program needs one public function or a function @main; {found}", module.operation.location
        )
    main = defined[name]
    if len(main.regions[0].blocks) == 0:
        raise CompileError(f"@{name} has no body", main.location)
    require_one_block(main)
    if name != "main":
        symbols = ir.SymbolTable(module.operation)
        ir.SymbolTable.replace_all_symbol_uses(name, "main", module.operation)
        symbols.set_symbol_name(main, "main")
    for function in defined.values():
        visibility = "public" if function == main else "private"
        function.attributes["sym_visibility"] = alpa.string(visibility, module.context)
    return main


def _is_public(function: ir.Operation) -> bool:
    visibility = alpa.get_string(function, "sym_visibility")
    return visibility in (None, "public")


def _require_static(main: ir.Operation) -> None:
    """Refuse what has no fixed shape or no meaning for a planner, at its op."""
    kinds = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value)
    for what, types in (("argument", kinds.inputs), ("result", kinds.results)):
        for number, kind in enumerate(types):
            if not isinstance(kind, (ir.RankedTensorType, ir.UnrankedTensorType)):
                raise CompileError(
                    f"{what} {number} has the type {kind}: a program takes and returns tensors", main.location
                )
    for argument in main.regions[0].blocks[0].arguments:
        _require_static_type(argument.type, f"argument {argument.arg_number}", main.location)
    for op in walk(main):
        if op.name.startswith("chlo."):
            raise CompileError(f"{op.name} has no StableHLO form", op.location)
        if op.name.partition(".")[0] not in _DIALECTS:
            raise CompileError(f"{op.name} is not StableHLO: XLA cannot run it", op.location)
        for result in op.results:
            if isinstance(result.type, ir.TupleType):
                raise CompileError(f"{op.name} has the type {result.type}: only tensors can be planned", op.location)
            _require_static_type(result.type, op.name, op.location)


def _require_static_type(kind: ir.Type, what: str, location: ir.Location) -> None:
    if isinstance(kind, ir.UnrankedTensorType) or (
        isinstance(kind, ir.RankedTensorType) and not ir.RankedTensorType(kind).has_static_shape
    ):
        raise CompileError(f"{what} has the dynamic shape {kind}: every shape must be known", location)


def _remove_gspmd(module: ir.Module, main: ir.Operation, remarks: list[Remark]) -> None:
    """Strip XLA's older annotations, which name devices by number and say nothing of a mesh."""
    removed = 0
    for op in list(walk(main)):
        if _XLA_SHARDING in op.attributes:
            del op.attributes[_XLA_SHARDING]
            removed += 1
        if op.name == "stablehlo.custom_call" and alpa.get_string(op, "call_target_name") == "Sharding":
            op.results[0].replace_all_uses_with(op.operands[0])
            op.erase()
    for read, write in (
        (argument_attributes, set_argument_attributes),
        (result_attributes, set_result_attributes),
    ):
        entries = read(main)
        removed += sum(entry.pop(_XLA_SHARDING, None) is not None for entry in entries)
        write(main, entries)
    if removed:
        remarks.append(
            Remark(
                f"{removed} annotation{'s' if removed > 1 else ''} mhlo.sharding removed: use sdy.sharding",
                location_text(main.location),
            )
        )


def _trim_attributes(module: ir.Module, main: ir.Operation) -> None:
    """Keep of the frontend's attributes what means something to the passes and to the user."""
    arguments = argument_attributes(main)
    for entry in arguments:
        for name in [n for n in entry if n in (ALIAS, DONOR) or n.startswith(("mhlo.", "tf."))]:
            del entry[name]
    set_argument_attributes(main, arguments)
    kept = ("jax.result_info", SHARDING)
    set_result_attributes(main, [{n: a for n, a in e.items() if n in kept} for e in result_attributes(main)])
    for name in [n for n in module.operation.attributes if n.startswith(("mhlo.", "jax."))]:
        del module.operation.attributes[name]


def _report_indivisible(main: ir.Operation, remarks: list[Remark]) -> None:
    """Say of each op that the compiler cannot split why that is."""
    for op, reason in indivisible_ops(main):
        remarks.append(Remark(f"every device computes the whole {op.name}: {reason}", location_text(op.location)))


def split_constants(root: ir.Operation) -> None:
    """Give each use of a splat or small constant its own op, right before the user."""
    for op in [op for op in walk(root) if op.name == CONSTANT and _is_cheap(op)]:
        uses = [(use.owner.operation, use.operand_number) for use in op.results[0].uses]
        # The list of uses runs backwards; in program order the output is stable to read.
        for user, number in reversed(uses[:-1]):
            user.operands[number] = op.clone(ip=ir.InsertionPoint(user)).results[0]
        if uses:
            op.move_before(uses[-1][0])


def _is_cheap(constant: ir.Operation) -> bool:
    kind = ir.RankedTensorType(constant.results[0].type)
    if prod(kind.shape) * _bytes(kind.element_type) <= SMALL_CONSTANT:
        return True
    elements = dense_value(constant.results[0])
    return elements is not None and elements.is_splat


def _bytes(element: ir.Type) -> int:
    if isinstance(element, ir.ComplexType):
        return 2 * _bytes(ir.ComplexType(element).element_type)
    width = getattr(element, "width", 64)
    return max(1, int(width) // 8)
