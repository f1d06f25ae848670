"""A hand-made plan: one SGD step of a two-layer perceptron on two submeshes, and the same step in numpy.

    h = tanh(x·w1)   p = h·w2   loss = Σ(p - y)²   w -= 0.1·∂loss/∂w

Stage 0 splits the batch (w1's gradient is all-reduced); stage 1 splits w2's rows (the product is all-reduced),
so the activations are resharded on the way from [{"x"}, {}] to [{}, {"x"}] and back.  `tanh` is sent again
backwards as x and h stay where they are.  The number of the microbatch is added up, to have an integer result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxlib.mlir import ir

from alpa_mlir.dialect.context import make_context, parse_module, print_module
from alpa_mlir.dialect.plan import Combine, Free, Instruction, Recv, Run, Schedule, Send, seal, write_schedules
from alpa_mlir.dialect.staged import Ref
from alpa_mlir.passes.route import RouteTransfers

BATCH, IN, HIDDEN, OUT = 8, 16, 32, 4


def reference(arguments: Sequence[np.ndarray], steps: int, microbatches: int) -> list[np.ndarray]:
    """What the plan's results should be: w1, w2, loss, predictions, sum of microbatch numbers."""
    x, y, w1, w2 = [np.asarray(a, np.float64) for a in arguments]
    for _ in range(steps):
        h = np.tanh(x @ w1)
        p = h @ w2
        d = 2 * (p - y)
        loss = ((p - y) ** 2).sum()
        g2, g1 = h.T @ d, x.T @ ((d @ w2.T) * (1 - h * h))
        w1, w2 = w1 - 0.1 * g1, w2 - 0.1 * g2
    return [w1, w2, loss, p, np.asarray(microbatches * (microbatches - 1) // 2, np.int32)]


def arguments(seed: int = 0) -> list[np.ndarray]:
    """x, y, w1, w2."""
    rng = np.random.default_rng(seed)
    shapes = ((BATCH, IN), (BATCH, OUT), (IN, HIDDEN), (HIDDEN, OUT))
    return [(0.3 * rng.standard_normal(s)).astype(np.float32) for s in shapes]


def tensor(shape: Sequence[int], element: str = "f32") -> str:
    return "tensor<" + "".join(f"{n}x" for n in shape) + element + ">"


def placed(stage: int, shape: Sequence[int], dims: Sequence[str], element: str = "f32") -> str:
    """A mesh tensor type; `dims` holds an axis name or "" per dimension."""
    inner = ", ".join(f'{{"{a}"}}' if a else "{}" for a in dims)
    return f'!mpmd.mesh_tensor<"stage_{stage}", {tensor(shape, element)}, sharding=<@stage_{stage}, [{inner}]>>'


def bound(stage: int, shape: Sequence[int], dims: Sequence[str], element: str = "f32", extra: str = "") -> str:
    """A type with its sharding attribute, as on a stage function's argument."""
    inner = ", ".join(f'{{"{a}"}}' if a else "{}" for a in dims)
    return f"{tensor(shape, element)} {{sdy.sharding = #sdy.sharding<@stage_{stage}, [{inner}]>{extra}}}"


def split_text(microbatches: int, stages: Sequence[Sequence[int]]) -> str:
    """The step as a level-6 module; `stages` are the devices of the two stages."""
    b = BATCH // microbatches
    xs, hs, ys = (b, IN), (b, HIDDEN), (b, OUT)
    w1, w2 = (IN, HIDDEN), (HIDDEN, OUT)
    listed = ", ".join(
        f'{{mesh = "stage_{s}", devices = array<i64: {", ".join(map(str, d))}>}}' for s, d in enumerate(stages)
    )
    topology = ", ".join(f'<"stage_{s}" : <["x"={len(d)}]>>' for s, d in enumerate(stages))
    return f"""
module attributes {{alpa.level = "split", alpa.microbatches = {microbatches} : i64, alpa.stages = [{listed}]}} {{
  sdy.mesh @stage_0 = <["x"={len(stages[0])}]>
  sdy.mesh @stage_1 = <["x"={len(stages[1])}]>
  func.func private @stage_0_forward(%x: {bound(0, xs, ("x", ""))}, %w: {bound(0, w1, ("", ""))})
      -> ({bound(0, hs, ("x", ""))})
      attributes {{mesh_shape = #sdy.mesh<["x"={len(stages[0])}]>}} {{
    %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] {{alpa.layer = 0 : i64}}
        : ({tensor(xs)}, {tensor(w1)}) -> {tensor(hs)}
    %1 = stablehlo.tanh %0 : {tensor(hs)}
    return %1 : {tensor(hs)}
  }}
  func.func private @stage_1_forward(%h: {bound(1, hs, ("", "x"))}, %w: {bound(1, w2, ("x", ""))},
      %y: {bound(1, ys, ("", ""))}) -> ({bound(1, ys, ("", ""))}, {bound(1, ys, ("", ""))}, {bound(1, (), ())})
      attributes {{mesh_shape = #sdy.mesh<["x"={len(stages[1])}]>}} {{
    %p = stablehlo.dot_general %h, %w, contracting_dims = [1] x [0]
        : ({tensor(hs)}, {tensor(w2)}) -> {tensor(ys)}
    %d = stablehlo.subtract %p, %y : {tensor(ys)}
    %s = stablehlo.multiply %d, %d : {tensor(ys)}
    %z = stablehlo.constant dense<0.0> : tensor<f32>
    %l = stablehlo.reduce(%s init: %z) applies stablehlo.add across dimensions = [0, 1]
        : ({tensor(ys)}, tensor<f32>) -> tensor<f32>
    %e = stablehlo.add %d, %d : {tensor(ys)}
    return %p, %e, %l : {tensor(ys)}, {tensor(ys)}, tensor<f32>
  }}
  func.func private @stage_1_backward(%h: {bound(1, hs, ("", "x"))}, %w: {bound(1, w2, ("x", ""))},
      %e: {bound(1, ys, ("", ""))}) -> ({bound(1, w2, ("x", ""))}, {bound(1, hs, ("", "x"))})
      attributes {{mesh_shape = #sdy.mesh<["x"={len(stages[1])}]>}} {{
    %g = stablehlo.dot_general %h, %e, contracting_dims = [0] x [0]
        : ({tensor(hs)}, {tensor(ys)}) -> {tensor(w2)}
    %r = sdy.reshard %e <@stage_1, [{{}}, {{}}]> : {tensor(ys)}
    %d = stablehlo.dot_general %r, %w, contracting_dims = [1] x [1]
        : ({tensor(ys)}, {tensor(w2)}) -> {tensor(hs)}
    return %g, %d : {tensor(w2)}, {tensor(hs)}
  }}
  func.func private @stage_0_backward(%x: {bound(0, xs, ("x", ""))}, %h: {bound(0, hs, ("x", ""))},
      %d: {bound(0, hs, ("x", ""))}, %i: {bound(0, (), (), "i32")})
      -> ({bound(0, w1, ("", ""))}, {bound(0, (), (), "i32")})
      attributes {{mesh_shape = #sdy.mesh<["x"={len(stages[0])}]>}} {{
    %one = stablehlo.constant dense<1.0> : {tensor(hs)}
    %s = stablehlo.multiply %h, %h : {tensor(hs)}
    %t = stablehlo.subtract %one, %s : {tensor(hs)}
    %u = stablehlo.multiply %d, %t : {tensor(hs)}
    %g = stablehlo.dot_general %x, %u, contracting_dims = [0] x [0]
        : ({tensor(xs)}, {tensor(hs)}) -> {tensor(w1)}
    return %g, %i : {tensor(w1)}, tensor<i32>
  }}
  {update(0, w1, ("", ""), len(stages[0]))}
  {update(1, w2, ("x", ""), len(stages[1]))}
  func.func public @main(%x: {placed(0, (BATCH, IN), ("x", ""))} {{alpa.role = "batch"}},
      %y: {placed(1, (BATCH, OUT), ("", ""))} {{alpa.role = "batch"}},
      %w1: {placed(0, w1, ("", ""))} {{alpa.role = "state", alpa.updates = 0 : i64}},
      %w2: {placed(1, w2, ("x", ""))} {{alpa.role = "state", alpa.updates = 1 : i64}})
      -> ({placed(0, w1, ("", ""))}, {placed(1, w2, ("x", ""))}, {placed(1, (), ())} {{jax.result_info = "loss"}},
          {placed(1, (BATCH, OUT), ("", ""))}, {placed(0, (), (), "i32")})
      attributes {{topology = #mpmd.topology<{topology}>}} {{
    %0 = "alpa.microbatch"(%x) {{alpa.dim = 0 : i64, alpa.id = 0 : i64}}
        : ({placed(0, (BATCH, IN), ("x", ""))}) -> {placed(0, xs, ("x", ""))}
    %1 = "alpa.microbatch"(%y) {{alpa.dim = 0 : i64, alpa.id = 1 : i64}}
        : ({placed(1, (BATCH, OUT), ("", ""))}) -> {placed(1, ys, ("", ""))}
    %2 = "alpa.index"() {{alpa.id = 2 : i64}} : () -> {placed(0, (), (), "i32")}
    %3 = mpmd.fragment_call<mesh="stage_0", origin=["forward"]> @stage_0_forward(%0, %w1)
        {{alpa.id = 3 : i64, alpa.phase = "forward", alpa.stage = 0 : i64}}
        : ({placed(0, xs, ("x", ""))}, {placed(0, w1, ("", ""))}) -> {placed(0, hs, ("x", ""))}
    %4 = mpmd.transfer {{alpa.id = 4 : i64, alpa.phase = "forward"}} %3
        : ({placed(0, hs, ("x", ""))}) -> {placed(1, hs, ("", "x"))}
    %5:3 = mpmd.fragment_call<mesh="stage_1", origin=["forward"]> @stage_1_forward(%4, %w2, %1)
        {{alpa.id = 5 : i64, alpa.phase = "forward", alpa.stage = 1 : i64}}
        : ({placed(1, hs, ("", "x"))}, {placed(1, w2, ("x", ""))}, {placed(1, ys, ("", ""))})
        -> ({placed(1, ys, ("", ""))}, {placed(1, ys, ("", ""))}, {placed(1, (), ())})
    %6:2 = mpmd.fragment_call<mesh="stage_1", origin=["backward"]> @stage_1_backward(%4, %w2, %5#1)
        {{alpa.id = 6 : i64, alpa.phase = "backward", alpa.stage = 1 : i64}}
        : ({placed(1, hs, ("", "x"))}, {placed(1, w2, ("x", ""))}, {placed(1, ys, ("", ""))})
        -> ({placed(1, w2, ("x", ""))}, {placed(1, hs, ("", "x"))})
    %7 = mpmd.transfer {{alpa.id = 7 : i64, alpa.phase = "backward"}} %6#1
        : ({placed(1, hs, ("", "x"))}) -> {placed(0, hs, ("x", ""))}
    %8:2 = mpmd.fragment_call<mesh="stage_0", origin=["backward"]> @stage_0_backward(%0, %3, %7, %2)
        {{alpa.id = 8 : i64, alpa.phase = "backward", alpa.stage = 0 : i64}}
        : ({placed(0, xs, ("x", ""))}, {placed(0, hs, ("x", ""))}, {placed(0, hs, ("x", ""))},
           {placed(0, (), (), "i32")}) -> ({placed(0, w1, ("", ""))}, {placed(0, (), (), "i32")})
    %9 = "alpa.accumulate"(%8#0) {{alpa.combine = "add", alpa.id = 9 : i64}}
        : ({placed(0, w1, ("", ""))}) -> {placed(0, w1, ("", ""))}
    %10 = "alpa.accumulate"(%8#1) {{alpa.combine = "add", alpa.id = 10 : i64}}
        : ({placed(0, (), (), "i32")}) -> {placed(0, (), (), "i32")}
    %11 = "alpa.accumulate"(%6#0) {{alpa.combine = "add", alpa.id = 11 : i64}}
        : ({placed(1, w2, ("x", ""))}) -> {placed(1, w2, ("x", ""))}
    %12 = "alpa.accumulate"(%5#2) {{alpa.combine = "add", alpa.id = 12 : i64}}
        : ({placed(1, (), ())}) -> {placed(1, (), ())}
    %13 = "alpa.stack"(%5#0) {{alpa.dim = 0 : i64, alpa.id = 13 : i64}}
        : ({placed(1, ys, ("", ""))}) -> {placed(1, (BATCH, OUT), ("", ""))}
    %14 = mpmd.fragment_call<mesh="stage_0", origin=["update"]> @stage_0_update(%w1, %9)
        {{alpa.id = 14 : i64, alpa.phase = "update", alpa.stage = 0 : i64}}
        : ({placed(0, w1, ("", ""))}, {placed(0, w1, ("", ""))}) -> {placed(0, w1, ("", ""))}
    %15 = mpmd.fragment_call<mesh="stage_1", origin=["update"]> @stage_1_update(%w2, %11)
        {{alpa.id = 15 : i64, alpa.phase = "update", alpa.stage = 1 : i64}}
        : ({placed(1, w2, ("x", ""))}, {placed(1, w2, ("x", ""))}) -> {placed(1, w2, ("x", ""))}
    return %14, %15, %12, %13, %10 : {placed(0, w1, ("", ""))}, {placed(1, w2, ("x", ""))}, {placed(1, (), ())},
        {placed(1, (BATCH, OUT), ("", ""))}, {placed(0, (), (), "i32")}
  }}
}}
"""


def update(stage: int, shape: Sequence[int], dims: Sequence[str], size: int) -> str:
    """w - 0.1·g as a stage function that overwrites w."""
    donated = bound(stage, shape, dims, extra=", alpa.donate = 0 : i64")
    kind = tensor(shape)
    return f"""func.func private @stage_{stage}_update(%w: {donated}, %g: {bound(stage, shape, dims)})
      -> ({bound(stage, shape, dims)})
      attributes {{mesh_shape = #sdy.mesh<["x"={size}]>}} {{
    %c = stablehlo.constant dense<0.1> : {kind}
    %s = stablehlo.multiply %c, %g : {kind}
    %n = stablehlo.subtract %w, %s : {kind}
    return %n : {kind}
  }}"""


def split_module(microbatches: int = 2, stages: Sequence[Sequence[int]] = ((0, 1), (2, 3))) -> ir.Module:
    """The step as a level-6 module."""
    return parse_module(split_text(microbatches, stages), make_context())


def plan_text(microbatches: int = 2, stages: Sequence[Sequence[int]] = ((0, 1), (2, 3))) -> str:
    """The step as a sealed plan with routes, tiny parts and all, and a 1F1B schedule."""
    module = split_module(microbatches, stages)
    RouteTransfers(smallest_part=16).apply(module, [])
    module.operation.attributes["alpa.level"] = ir.StringAttr.get("plan", module.context)
    write_schedules(module, _schedules(microbatches))
    seal(module)
    return print_module(module)


def _refs(*pairs: tuple[int, int]) -> tuple[Ref, ...]:
    return tuple(Ref(*pair) for pair in pairs)


def _schedules(count: int) -> list[Schedule]:
    first: list[Instruction] = []
    for m in range(count + 1):
        if m < count:
            first += [Run(0, m), Run(2, m), Run(3, m), Send(4, m)]
        if m > 0:
            k = m - 1
            first += [Recv(7, k), Run(8, k), Combine((9, 10), k)]
            first += [Free(_refs((0, 0), (2, 0), (3, 0), (7, 0), (8, 0), (8, 1)), k)]
    first += [Run(14, -1), Free(_refs((9, 0)), -1)]
    second: list[Instruction] = []
    for m in range(count):
        second += [Run(1, m), Recv(4, m), Run(5, m), Combine((12, 13), m), Run(6, m), Send(7, m)]
        second += [Combine((11,), m)]
        second += [Free(_refs((1, 0), (4, 0), (5, 0), (5, 1), (5, 2), (6, 0), (6, 1)), m)]
    second += [Run(15, -1), Free(_refs((11, 0)), -1)]
    return [Schedule("stage_0", "1f1b", tuple(first)), Schedule("stage_1", "1f1b", tuple(second))]
