"""Programs that call LAPACK (`stablehlo.custom_call @lapack_…`: Cholesky, triangular solves, eigenvalues, …).

jaxlib finds the routines in scipy when jax lowers the first such op of its own.  A program that comes as StableHLO
never passes there, and would call through pointers that are still null.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp


def ready_for(text: str) -> None:
    """Let XLA find LAPACK in this process if the program `text` calls it."""
    if "@lapack_" in text:
        _find_routines()


@cache
def _find_routines() -> None:
    jax.jit(jnp.linalg.cholesky).trace(jax.ShapeDtypeStruct((2, 2), jnp.float32)).lower(lowering_platforms=("cpu",))
