"""The upstream C++ passes that may stand in a pipeline, and where.

jaxlib links about 80 MLIR, Shardy and StableHLO passes.  The C++ pass manager checks names, but some passes
abort the whole process when nested wrongly or run on a module they do not expect, so both are checked here
first.  The tables were found by experiment with jaxlib 0.10: every name was run at both nestings, and on a
dozen odd modules (empty, without bodies, recursive, with unregistered ops, …), each in a child process.
"""

from __future__ import annotations

from jaxlib.mlir import ir

from alpa_mlir.dialect.alpa import walk
from alpa_mlir.dialect.context import functions
from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.inline import require_no_recursion
from alpa_mlir.passes.registry import PipelineError, did_you_mean, registered

MODULE = "builtin.module"
FUNCTION = "func.func"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ANYWHERE = _names(
    """
    canonicalize composite-fixed-point-pass control-flow-sink cse generate-runtime-verification
    loop-invariant-code-motion loop-invariant-subset-hoisting mem2reg print-ir print-op-stats
    remove-dead-values sccp snapshot-op-locations sroa strip-debuginfo topological-sort trivial-dce
    view-op-graph
    """
)
ON_MODULES = _names(
    """
    inline sdy-add-data-flow-edges sdy-add-func-data-flow-edges sdy-aggressive-propagate
    sdy-apply-sharding-constraints sdy-basic-propagate sdy-close-shardings
    sdy-constant-or-scalar-splitter sdy-convert-global-to-local sdy-drop-sharding-and-mesh
    sdy-export-named-computations sdy-export-pipeline sdy-flatten-call-graph sdy-import-func-calls
    sdy-import-pipeline sdy-inline-meshes sdy-insert-func-call-reshards sdy-lift-inlined-meshes
    sdy-manual-axes-cleanup sdy-op-priority-propagate sdy-pre-order-funcs
    sdy-propagate-sharding-from-func-to-call sdy-propagate-to-func-results sdy-propagation-pipeline
    sdy-remove-propagation-debug-info sdy-remove-sharding-groups sdy-remove-size-one-axes
    sdy-remove-sub-axes-in-input-output-shardings sdy-resolve-permutation-factors
    sdy-sharding-group-import sdy-unflatten-call-graph
    sdy-update-non-divisible-input-output-shardings sdy-user-priority-propagate
    stablehlo-compatibility-expander stablehlo-convert-to-signless stablehlo-legalize-to-linalg
    stablehlo-legalize-to-vhlo stablehlo-refine-arguments stablehlo-refine-shapes
    stablehlo-wrap-in-composite symbol-dce symbol-privatize vhlo-legalize-to-stablehlo vhlo-to-version
    """
)
ON_FUNCTIONS = _names(
    """
    chlo-legalize-to-stablehlo sdy-constant-or-scalar-merger sdy-drop-sharding-rules
    sdy-explicit-gather-scatter-batching sdy-insert-explicit-reshards sdy-pad-for-divisibility
    sdy-populate-op-sharding-rules sdy-remove-all-gather-reduce-scatter-for-cmv1
    sdy-reshard-to-collectives sdy-sharding-constraint-to-reshard sdy-sink-data-flow-edges
    sdy-sink-func-data-flow-edges shape-legalize-to-stablehlo stablehlo-canonicalize-dynamism
    stablehlo-check-shape-assertions stablehlo-complex-math-expander
    stablehlo-legalize-composite-to-call stablehlo-legalize-deprecated-ops
    stablehlo-legalize-qdq-to-quantized-op stablehlo-legalize-quant-to-math
    stablehlo-legalize-quantized-op-to-qdq
    """
)
NAMES = ANYWHERE | ON_MODULES | ON_FUNCTIONS

_NEEDS_PUBLIC_MAIN = _names("sdy-propagation-pipeline sdy-import-pipeline")
_NEEDS_NO_RECURSION = _names("sdy-propagation-pipeline sdy-import-pipeline sdy-import-func-calls")
_NEEDS_KNOWN_OPS = _names(
    """
    inline sdy-aggressive-propagate sdy-basic-propagate sdy-op-priority-propagate
    sdy-user-priority-propagate sdy-propagation-pipeline sdy-resolve-permutation-factors
    """
)


def check_name(name: str, anchor: str) -> None:
    """`PipelineError` unless `name` is an upstream pass that may run on `anchor` ops."""
    if name not in NAMES:
        raise PipelineError(f"there is no pass '{name}'{did_you_mean(name, NAMES | registered().keys())}")
    if anchor == MODULE and name in ON_FUNCTIONS:
        raise PipelineError(f"{name} runs on functions: write func.func({name})")
    if anchor == FUNCTION and name in ON_MODULES:
        raise PipelineError(f"{name} runs on the module: take it out of func.func(…)")


def check_input(names: tuple[str, ...], module: ir.Module) -> None:
    """`CompileError` where one of the passes would abort the process on this module."""
    shardy = [n for n in names if n.startswith("sdy-")]
    if shardy:
        _check_functions(shardy[0], module)
    for name in names:
        if name in _NEEDS_PUBLIC_MAIN:
            _check_public_main(name, module)
        if name in _NEEDS_NO_RECURSION:
            require_no_recursion(module)
        if name in _NEEDS_KNOWN_OPS:
            _check_ops(name, module)


def _check_functions(name: str, module: ir.Module) -> None:
    defined = functions(module)
    for op in module.body.operations:
        if op.operation.name.startswith("vhlo."):
            raise CompileError(
                f"{name} cannot run on VHLO: put vhlo-legalize-to-stablehlo before it", op.operation.location
            )
    if not defined:
        raise CompileError(f"{name} needs a function, the module has none", module.operation.location)
    for symbol, function in defined.items():
        if len(function.regions[0].blocks) == 0:
            raise CompileError(f"{name} needs a body for each function, @{symbol} has none", function.location)


def _check_public_main(name: str, module: ir.Module) -> None:
    main = functions(module).get("main")
    if main is not None and "sym_visibility" in main.attributes:
        visibility = ir.StringAttr(main.attributes["sym_visibility"]).value
        if visibility != "public":
            raise CompileError(f"{name} needs a public @main, this one is {visibility}", main.location)


def _check_ops(name: str, module: ir.Module) -> None:
    for op in walk(module.operation):
        if op.name.startswith("alpa."):
            raise CompileError(f"{name} cannot run on a module with instructions such as {op.name}", op.location)
