"""Why an axis may not be put on a factor: what enumeration leaves out, in words."""

from __future__ import annotations

from math import prod

from alpa_mlir.dialect.factors import FIXED, PASS, OpFactors, factors_in, splittable
from alpa_mlir.dialect.mesh import Mesh


def usable_factors(factors: OpFactors) -> list[int]:
    """Factors that an axis may be put on, if sizes allow: those about which `why_unusable` has nothing to say."""
    return [f for f in range(len(factors.sizes)) if not why_unusable(factors, f)]


def why_unusable(factors: OpFactors, factor: int) -> str:
    """Why no axis may be put on a factor, whatever its size; empty where one may."""
    kept = factors_in(factors.results)
    if factors.sizes[factor] == 1:
        return "its size is one"
    if factors.kinds[factor] == FIXED:
        return factors.why_fixed(factor)
    if factors.kinds[factor] == PASS and factor not in kept:
        return "no result has it"
    if factors.is_reduction(factor) and factor in kept:
        return "a result has it although it is summed"
    if factors.is_reduction(factor) and factor not in factors_in(factors.operands):
        return "no operand has it"
    return ""


def why_not_split(factors: OpFactors, factor: int, axis: str, mesh: Mesh) -> str:
    """Why one axis may not be put on a usable factor; empty where it may."""
    parts = mesh.size(axis)
    if factors.sizes[factor] % parts:
        return f"{parts} does not divide {factors.sizes[factor]}"
    if splittable(factors, factor, parts):
        return ""
    for mapping in (*factors.operands, *factors.results):
        for dim in mapping:
            if factor in dim and prod(factors.sizes[f] for f in dim[: dim.index(factor)]) != 1:
                return "it is not the major part of a dimension: its parts would not be contiguous"
    return "it cannot be split"


def exclusions(factors: OpFactors, mesh: Mesh) -> list[tuple[int, str, str]]:
    """(factor, axis or "" for all, reason) of what is left out, in order."""
    found = []
    for factor in range(len(factors.sizes)):
        why = why_unusable(factors, factor)
        if why:
            found.append((factor, "", why))
            continue
        for axis in (a for a in mesh.axis_names if mesh.size(a) > 1):
            why = why_not_split(factors, factor, axis, mesh)
            if why:
                found.append((factor, axis, why))
    return found
