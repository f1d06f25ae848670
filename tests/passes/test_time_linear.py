"""States of results from states of operands, where no operand is split."""

import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import functions, make_context
from alpa_mlir.passes.local.time_linear import unsplit_result
from alpa_mlir.passes.local.time_states import INVARIANT, ZERO, partial

SUM, MAX, MIN = partial("add"), partial("max"), partial("min")
KINDS = "(tensor<4xf32>, tensor<4xf32>) -> tensor"
CASES = [
    ("add", "<4xf32>", (SUM, ZERO), SUM),
    ("add", "<4xf32>", (SUM, INVARIANT), None),
    ("add", "<4xf32>", (SUM, MAX), None),
    ("add", "<4xf32>", (ZERO, ZERO), ZERO),
    ("add", "<4xf32>", (ZERO, INVARIANT), INVARIANT),
    ("multiply", "<4xf32>", (SUM, INVARIANT), SUM),
    ("multiply", "<4xf32>", (SUM, SUM), None),
    ("multiply", "<4xf32>", (ZERO, ZERO), ZERO),
    ("multiply", "<4xf32>", (MAX, INVARIANT), None),
    ("maximum", "<4xf32>", (MAX, INVARIANT), MAX),
    ("maximum", "<4xf32>", (MAX, ZERO), MAX),
    ("maximum", "<4xf32>", (MIN, INVARIANT), None),
    ("maximum", "<4xf32>", (SUM, SUM), None),
    ("concatenate", "<8xf32>", (SUM, INVARIANT), None),
    ("concatenate", "<8xf32>", (MAX, INVARIANT), MAX),
    ("concatenate", "<8xf32>", (MAX, ZERO), MAX),
    ("concatenate", "<8xf32>", (ZERO, MIN), MIN),
    ("concatenate", "<8xf32>", (MAX, MIN), None),
]


@pytest.mark.parametrize(("name", "kind", "states", "expected"), CASES)
def test_state_of_the_result(name, kind, states, expected):
    attributes = "{dimension = 0 : i64} " if name == "concatenate" else ""
    module = ir.Module.parse(
        f"""func.func @main(%a: tensor<4xf32>, %b: tensor<4xf32>) {{
          %r = "stablehlo.{name}"(%a, %b) {attributes}: {KINDS}{kind}
          return
        }}""",
        make_context(),
    )
    op = functions(module)["main"].regions[0].blocks[0].operations[0].operation
    assert unsplit_result(op, states) == expected
