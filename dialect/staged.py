"""Level 6 of the IR as values: one step of training as a dataflow between submeshes.

`@main` of a split module says what a step does: calls of stage functions (`mpmd.fragment_call`),
copies between submeshes (`mpmd.transfer`), and where microbatches begin (`alpa.microbatch`,
`alpa.index`) and end (`alpa.accumulate`, `alpa.stack`).  Values are `!mpmd.mesh_tensor`: a tensor,
the submesh it lives on, and its sharding there.  Here are the values; `alpa_mlir.dialect.staged_main`
reads them from `@main` and writes them.  The contract is `docs/ir.md`, level 6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from typing import NamedTuple

from jaxlib.mlir import ir

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.sharding import Sharding, read_sharding

MICROBATCH = "alpa.microbatch"
INDEX = "alpa.index"
ACCUMULATE = "alpa.accumulate"
STACK = "alpa.stack"
FRAGMENT_CALL = "mpmd.fragment_call"
TRANSFER = "mpmd.transfer"

ARGUMENT = -1
"""The `op` of a `Ref` to an argument of `@main`."""

_MESH_TENSOR = re.compile(
    r'!mpmd\.mesh_tensor<"(?P<mesh>[^"]+)", tensor<(?P<dims>(?:\d+x)*)(?P<element>complex<\w+>|\w+)>'
    r"(?:, sharding=(?P<sharding><.*>))?>"
)


@dataclass(frozen=True)
class MeshTensor:
    """The type of a value of `@main`: where it lives, its global shape, element type and sharding.

    `element` is the MLIR spelling (`f32`, `bf16`, `i32`, `ui32`, `i1`, …).
    """

    mesh: str
    shape: tuple[int, ...]
    element: str
    sharding: Sharding

    @property
    def bytes(self) -> float:
        """Bytes of the whole tensor."""
        return prod(self.shape) * element_bytes(self.element)

    @property
    def tensor_text(self) -> str:
        """The global tensor type, `tensor<16x8xf32>`."""
        return "tensor<" + "".join(f"{n}x" for n in self.shape) + self.element + ">"

    def type(self, context: ir.Context) -> ir.Type:
        """The `!mpmd.mesh_tensor<…>` type."""
        known = _written(context)
        if self not in known:
            sharding = self.sharding.text(self.mesh)
            text = f'!mpmd.mesh_tensor<"{self.mesh}", {self.tensor_text}, sharding={sharding}>'
            known[self] = ir.Type.parse(text, context)
        return known[self]

    @staticmethod
    def of(tensor: ir.Type, mesh: str, sharding: Sharding) -> MeshTensor:
        """The mesh tensor of a ranked, static tensor type."""
        return _mesh_tensor(tensor, mesh, sharding)

    @staticmethod
    def read(kind: ir.Type, location: ir.Location | None = None) -> MeshTensor:
        """The inverse of `type`; CompileError for any other type."""
        try:
            return _read_type(kind)
        except CompileError as e:
            raise CompileError(e.message, location) from None


@lru_cache(maxsize=65536)
def _mesh_tensor(tensor: ir.Type, mesh: str, sharding: Sharding) -> MeshTensor:
    ranked = ir.RankedTensorType(tensor)
    return MeshTensor(mesh, tuple(ranked.shape), str(ranked.element_type), sharding)


@lru_cache(maxsize=65536)
def _read_type(kind: ir.Type) -> MeshTensor:
    found = _MESH_TENSOR.fullmatch(str(kind))
    if found is None:
        raise CompileError(f"expected a !mpmd.mesh_tensor with static shape, got {kind}")
    shape = tuple(int(n) for n in found["dims"].split("x") if n)
    sharding = Sharding.replicated(len(shape))
    if found["sharding"] is not None:
        mesh, sharding = read_sharding(ir.Attribute.parse("#sdy.sharding" + found["sharding"], kind.context))
        if mesh != found["mesh"]:
            raise CompileError(f"the sharding of {kind} is on another mesh")
    return MeshTensor(found["mesh"], shape, found["element"], sharding)


@lru_cache(maxsize=1)
def _written(context: ir.Context) -> dict[MeshTensor, ir.Type]:
    """The types written so far in the context that was last written in."""
    return {}


@lru_cache(maxsize=1024)
def element_bytes(element: str) -> float:
    """Bytes of one element (`f32` 4, `bf16` 2, `i1` 1, `complex<f32>` 8)."""
    if element.startswith("complex"):
        return 2 * element_bytes(element[len("complex<") : -1])
    digits = element.lstrip("abcdefghijklmnopqrstuvwxyz").split("E")[0]
    return max(1.0, int(digits) / 8)


class Ref(NamedTuple):
    """A value of `@main`: result `result` of the op numbered `op`, or argument `result` (`op` = -1)."""

    op: int
    result: int = 0

    @property
    def is_argument(self) -> bool:
        """Whether this is an argument of `@main`."""
        return self.op == ARGUMENT


@dataclass(frozen=True)
class Fragment:
    """`mpmd.fragment_call`: run stage function `function` of stage `stage` on submesh `mesh`.

    What runs once per step for several stages of a submesh belongs to the first of them.
    """

    id: int
    phase: str
    stage: int
    mesh: str
    function: str
    operands: tuple[Ref, ...]
    results: tuple[MeshTensor, ...]


@dataclass(frozen=True)
class Transfer:
    """`mpmd.transfer`: copy a value to another submesh, resharding it on the way.

    `route` is the number of its route (see `alpa_mlir.dialect.route`); `write_main` comes before there are any.
    """

    id: int
    phase: str
    operands: tuple[Ref]
    results: tuple[MeshTensor]
    route: int | None = None


@dataclass(frozen=True)
class Slice:
    """`alpa.microbatch`: one microbatch of a batch argument, cut along `dim`, on the result's submesh."""

    id: int
    dim: int
    operands: tuple[Ref]
    results: tuple[MeshTensor]


@dataclass(frozen=True)
class Index:
    """`alpa.index`: the number of the microbatch, on the result's submesh."""

    id: int
    results: tuple[MeshTensor]
    operands: tuple[Ref, ...] = ()


@dataclass(frozen=True)
class Accumulate:
    """`alpa.accumulate`: combine a value over all microbatches (`combine` = add, max or min)."""

    id: int
    combine: str
    operands: tuple[Ref]
    results: tuple[MeshTensor]


@dataclass(frozen=True)
class Stack:
    """`alpa.stack`: concatenate the microbatches' parts along `dim`."""

    id: int
    dim: int
    operands: tuple[Ref]
    results: tuple[MeshTensor]


Step = Fragment | Transfer | Slice | Index | Accumulate | Stack


@dataclass(frozen=True)
class Part:
    """One of `count` equal parts, along dimension `dim`, of an argument or result of the program."""

    number: int
    count: int
    dim: int


@dataclass(frozen=True)
class Argument:
    """An argument of `@main`: its type, role, the result that replaces it (state), its name if known.

    `nonnegative`: the program takes its root or logarithm, so random values must not be negative.
    """

    type: MeshTensor
    role: str
    updates: int | None = None
    name: str = ""
    nonnegative: bool = False
    part: Part | None = None


@dataclass(frozen=True)
class PlanMain:
    """One step: arguments, ops in program order with increasing ids, and the returned values.

    `result_names` are `jax.result_info` where known, else ""; `result_parts` are none where all results are whole.
    """

    arguments: tuple[Argument, ...]
    steps: tuple[Step, ...]
    results: tuple[Ref, ...]
    result_names: tuple[str, ...] = ()
    microbatches: int = 1
    result_parts: tuple[Part | None, ...] = ()
    _by_id: dict[int, Step] = field(default_factory=dict, compare=False, repr=False)
    _often: set[int] = field(default_factory=set, compare=False, repr=False)

    def __post_init__(self) -> None:
        for step in self.steps:
            self._by_id[step.id] = step
            if self._repeats(step):
                self._often.add(step.id)

    @cached_property
    def returned(self) -> frozenset[Ref]:
        """The values that are results."""
        return frozenset(self.results)

    def step(self, number: int) -> Step:
        """The op with this id; KeyError where there is none."""
        return self._by_id[number]

    def type_of(self, ref: Ref) -> MeshTensor:
        """The type of a value."""
        if ref.is_argument:
            return self.arguments[ref.result].type
        return self._by_id[ref.op].results[ref.result]

    def per_microbatch(self, ref: Ref) -> bool:
        """Whether a value exists once per microbatch (rather than once per step)."""
        return ref.op in self._often

    def runs_per_microbatch(self, step: Step) -> bool:
        """Whether the *results* of an op exist once per microbatch."""
        return step.id in self._often

    def _repeats(self, step: Step) -> bool:
        if isinstance(step, (Slice, Index)):
            return True
        if isinstance(step, Fragment):
            return step.phase in ("forward", "backward", "weight")
        return isinstance(step, Transfer) and self.per_microbatch(step.operands[0])
