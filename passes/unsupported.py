"""Ops that have no place in a plan: effects, exchanges with the host, collectives of the program's own.

A plan runs in other processes than the one that exported the program, in another order, once a microbatch. An op that
does more than compute results therefore goes where nothing needs its results, and is an error where something does.
A step is the whole program, not one device's part of it: collectives are the compiler's to place.
"""

from __future__ import annotations

import re

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError, Remark, location_text

_EXCHANGES = frozenset({"stablehlo.infeed", "stablehlo.outfeed", "stablehlo.send", "stablehlo.recv"})
_ONE_DEVICES_PART = frozenset({
    "sdy.manual_computation", "stablehlo.all_gather", "stablehlo.all_reduce", "stablehlo.all_to_all",
    "stablehlo.collective_broadcast", "stablehlo.collective_permute",
    "stablehlo.partition_id", "stablehlo.reduce_scatter", "stablehlo.replica_id",
})  # fmt: skip


_BROUGHT_ALONG = re.compile(
    r"(lapack|cu|hip|__cu|__gpu|__triton|__onednn|xla|Xla|mhlo|stablehlo|chlo|sdy|ducc|tf|annotate|LayoutConstraint|MoveTo)"
    r"|(Sharding|SPMD\w*|TopK|ApproxTopK|PartialReduce|Eigh|Qr|Cholesky|LuDecomposition|ResizeBilinear|ResizeNearest|Pin|"
    r"Unpin|CreateBuffer|AllocateBuffer|X64\w*|SliceToDynamic|PadToStatic|shape_assertion)$"
)
"""Beginnings, or whole names, of the calls that XLA and jaxlib bring along for some platform."""


def refuse_hidden_state(module: ir.Module) -> None:
    """CompileError at an op whose result depends on what ran before it on the device."""
    for op in alpa.walk(module.operation):
        if op.name == "stablehlo.rng":
            raise CompileError(
                "stablehlo.rng draws from a state that the program does not show, so no two runs agree: "
                "use stablehlo.rng_bit_generator",
                op.location,
            )


def remove_unsupported(main: ir.Operation, remarks: list[Remark]) -> None:
    """Remove ops with effects, with a warning each.

    Raises CompileError at a callback into Python whose results are used, at an exchange with the host, and at a
    collective or manual computation (jax's `shard_map`, `pmap`).
    """
    for op in list(alpa.walk(main)):
        if op.name in _EXCHANGES:
            raise CompileError(f"{op.name} exchanges data with a host program, which a plan does not have", op.location)
        if op.name in _ONE_DEVICES_PART:
            raise CompileError(
                f"{op.name} is part of a program that is spread over devices already: give the whole step, "
                "without shard_map or collectives",
                op.location,
            )
        if op.name == "stablehlo.custom_call":
            _remove_call(op, remarks)


def _remove_call(op: ir.Operation, remarks: list[Remark]) -> None:
    target = alpa.get_string(op, "call_target_name") or ""
    is_used = any(True for result in op.results for _ in result.uses)
    if is_used and "python" in target and "callback" in target:
        raise CompileError(
            f"@{target} calls into the Python that exported the program: its results cannot be had elsewhere",
            op.location,
        )
    if not is_used and _has_effect(op):
        remarks.append(
            Remark(f"@{target} is left out: a plan keeps results only", location_text(op.location), "warning")
        )
        op.erase()
    elif is_used and _BROUGHT_ALONG.match(target) is None:
        remarks.append(
            Remark(
                f"neither XLA nor jaxlib brings @{target} along: a plan with it runs only where its process registers "
                "it, which alpa-mlir-run does not",
                location_text(op.location),
                "warning",
            )
        )


def _has_effect(op: ir.Operation) -> bool:
    return "has_side_effect" in op.attributes and ir.BoolAttr(op.attributes["has_side_effect"]).value
