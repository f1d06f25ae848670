"""Layouts: a folded sequence of layers stands for the whole one, and ranges of it are added up as if written out."""

from __future__ import annotations

import numpy as np
import pytest
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import make_context, parse_module
from alpa_mlir.passes.inter.layout import Flow, Group, Layout, read_layout, write_layout

FOLDED = Layout(6, (Group(2, 3, 3),))
"""Layers 0 1 | 2 3 | 4 5, the middle pair four times in all: 0 1 2 3 2 3 2 3 2 3 4 5."""


def entries_directly(copies: list[tuple[int, tuple[int, ...]]], search: np.ndarray, count: int) -> np.ndarray:
    """The definition: copies made outside of the range and used inside."""
    table = np.zeros((count, count))
    for i in range(count):
        for j in range(i, count):
            inside = lambda p: i <= search[p] <= j  # noqa: B023, E731
            table[i, j] = sum(not inside(made) and any(inside(u) for u in used) for made, used in copies)
    return table


def test_the_order_of_the_whole_program() -> None:
    assert FOLDED.order.tolist() == [0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 4, 5]
    assert FOLDED.times.tolist() == [1, 1, 4, 4, 1, 1] and FOLDED.count == 12 and not FOLDED.whole
    two = Layout(5, (Group(1, 1, 1), Group(3, 3, 2)))
    assert two.order.tolist() == [0, 1, 1, 2, 3, 3, 3, 4]
    cut = Layout(6, (Group(2, 3, 3),), (0, 3, 7))
    assert cut.search.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2] and cut.count == 3
    assert cut.membership.tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 2, 2, 0, 0], [0, 0, 1, 2, 1, 1]]


@pytest.mark.parametrize(
    ("flow", "copies"),
    [
        (Flow(2, (3,)), [(2, (3,)), (4, (5,)), (6, (7,)), (8, (9,))]),
        (Flow(3, (4,)), [(3, (4,)), (5, (6,)), (7, (8,)), (9, (10,))]),
        (Flow(2, (1,)), [(2, (1,)), (4, (3,)), (6, (5,)), (8, (7,))]),
        (Flow(1, (2,)), [(1, (2,))]),
        (Flow(4, (3,)), [(10, (9,))]),
        (Flow(0, (2, 4)), [(0, (2, 4, 6, 8, 10))]),
        (Flow(5, (1, 3)), [(11, (1, 3, 5, 7, 9))]),
        (Flow(0, (1, 5)), [(0, (1, 11))]),
    ],
)
def test_copies_of_values(flow: Flow, copies: list[tuple[int, tuple[int, ...]]]) -> None:
    """Between neighbours, into and out of the group from one side, and values that all copies share."""
    assert FOLDED.copies(flow) == copies


def test_sums_and_entries_are_their_definitions() -> None:
    rng = np.random.default_rng(0)
    for layout in (Layout(5), FOLDED, Layout(6, (Group(2, 3, 3),), (0, 2, 3, 7, 10))):
        figures = rng.uniform(size=layout.layers)
        sums, places = layout.sums(figures), figures[layout.order]
        for i in range(layout.count):
            for j in range(i, layout.count):
                inside = (layout.search >= i) & (layout.search <= j)
                assert sums[i, j] == pytest.approx(places[inside].sum())
        for _ in range(30):
            made = int(rng.integers(layout.layers))
            used = tuple(sorted({int(u) for u in rng.integers(layout.layers, size=2)} - {made}))
            flow = Flow(made, used)
            expected = entries_directly(layout.copies(flow), layout.search, layout.count)
            assert np.array_equal(np.triu(layout.entries(flow)), expected)


def test_layouts_are_written_and_read() -> None:
    module = parse_module(
        "func.func private @microbatch() { %0 = stablehlo.constant {alpa.layer = 5 : i64} dense<0> : tensor<i32>\n"
        "return }",
        make_context(),
    )
    assert read_layout(module) == Layout(6) and read_layout(module).whole
    layout = Layout(6, (Group(2, 3, 3),), (0, 3, 7))
    write_layout(module, layout)
    assert isinstance(module.operation.attributes["alpa.layout"], ir.DictAttr)
    assert read_layout(module) == layout
