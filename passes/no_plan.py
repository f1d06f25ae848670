"""Why no setting makes a plan: what is said where all that were considered failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf, isfinite

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.intra.problem import DoesNotFit
from alpa_mlir.passes.settings import Attempt, Considered, Setting


def short_of_memory(rows: Iterable[Considered]) -> bool:
    """Whether memory was too small for all of them."""
    return all(isinstance(row.error, DoesNotFit) for row in rows)


def least_bytes(rows: Iterable[Considered]) -> float:
    """The least bytes per device that would have done; infinite where that is not known."""
    return min((row.error.least for row in rows if isinstance(row.error, DoesNotFit)), default=inf)


def least_error(rows: Sequence[Considered], closer: Callable[[Setting], Attempt] | None) -> CompileError:
    """Of the settings that memory is too small for the error of the one that needs least, else the last error.

    `closer` makes an exact attempt of a setting, where those before were rough.
    """
    failed = [(row.error, row.setting) for row in rows if row.error is not None]
    small = [(e, s) for e, s in failed if isinstance(e, DoesNotFit) and isfinite(e.least)]
    if not small:
        return failed[-1][0]
    error, setting = min(small, key=lambda found: found[0].least)
    exact = closer(setting).error if closer is not None else None
    error = exact if isinstance(exact, DoesNotFit) else error
    if len(small) == 1:
        return error
    note = f"of {len(small)} settings that do not fit this one needs least: {setting.told}"
    return DoesNotFit(error.message, error.location, [*error.notes, note], error.least)
