"""Which arguments may not be drawn negative."""

import jax
import jax.numpy as jnp

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, make_context, parse_module
from alpa_mlir.dialect.sharding import argument_attributes
from alpa_mlir.passes.normalize import Normalize


def marked(function, *arguments) -> list[int]:
    module = parse_module(jax.jit(function, keep_unused=True).lower(*arguments).as_text(), make_context())
    Normalize().apply(module, [])
    entries = argument_attributes(functions(module)["main"])
    return [i for i, entry in enumerate(entries) if alpa.NONNEGATIVE in entry]


def test_the_second_moment_of_adam_is_marked_and_nothing_else():
    def adam(p, m, v, count, g):
        count = count + 1
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * (g * g)
        step = (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)
        return p - 0.01 * step, m, v, count

    x = jnp.ones((4, 4))
    assert marked(adam, x, x, x, jnp.int32(0), x) == [2]


def test_a_square_may_come_from_anything():
    assert marked(lambda x: jnp.sqrt(x * x + 1.0), jnp.ones(4)) == []


def test_a_logarithm_reaches_through_reshapes():
    assert marked(lambda x: jnp.log(jnp.broadcast_to(x.reshape(2, 2).T, (3, 2, 2))), jnp.ones(4)) == [0]
