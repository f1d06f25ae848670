"""What a rank does in a step, decoded: actions on the slots of a list.  See `program`."""

from __future__ import annotations

from dataclasses import dataclass, field

from alpa_mlir.dialect.staged import MeshTensor


@dataclass(frozen=True)
class Call:
    """Run a stage function on a submesh, for a microbatch or (-1) once per step.

    `settles`: it takes over the buffer of a value that was given to others, who must have it first.
    """

    function: str
    mesh: str
    microbatch: int
    operands: tuple[int, ...]
    results: tuple[int, ...]
    what: str
    settles: bool = False


@dataclass(frozen=True)
class Cut:
    """Put microbatch `microbatch` of `count` of host argument `argument`, cut along `dim`, onto a submesh."""

    argument: int
    dim: int
    microbatch: int
    count: int
    result: int
    type: MeshTensor


@dataclass(frozen=True)
class Number:
    """Put the number of the microbatch onto a submesh."""

    microbatch: int
    result: int
    type: MeshTensor


@dataclass(frozen=True)
class Path:
    """Where values of one kind come from and go to; `route` numbers the plan's route, None where it has none."""

    source: MeshTensor
    target: MeshTensor
    route: int | None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.source, self.target, self.route)))

    def __hash__(self) -> int:
        # Asked several times per instruction.
        return self._hash


@dataclass(frozen=True)
class Give:
    """The source's half of transfer number `transfer`; `keep`: the value's buffer is donated later in the step."""

    value: int
    path: Path
    transfer: int
    keep: bool


@dataclass(frozen=True)
class Expect:
    """Let the messages of a transfer land; comes some time before its `Take`."""

    path: Path
    transfer: int


@dataclass(frozen=True)
class Take:
    """The destination's half of a transfer: wait for its messages and make the value.

    `owned`: a stage function takes over its buffer.
    """

    result: int
    path: Path
    transfer: int
    what: str
    owned: bool = False


@dataclass(frozen=True)
class Assign:
    """Let a slot hold another one's value: the first microbatch of a total, or a part of a stack."""

    value: int
    result: int


@dataclass(frozen=True)
class Add:
    """Combine values into running totals, all in one program; `donate` says whose total may be overwritten."""

    mesh: str
    combine: tuple[str, ...]
    totals: tuple[int, ...]
    values: tuple[int, ...]
    types: tuple[MeshTensor, ...]
    donate: tuple[bool, ...]


@dataclass(frozen=True)
class Join:
    """Concatenate the microbatches' parts along `dim`."""

    parts: tuple[int, ...]
    part: MeshTensor
    result: int
    type: MeshTensor
    dim: int


@dataclass(frozen=True)
class Drop:
    """Forget values."""

    values: tuple[int, ...]


Action = Call | Cut | Number | Give | Expect | Take | Assign | Add | Join | Drop


def reads(action: Action) -> tuple[int, ...]:
    """The slots whose values an action needs, or ends."""
    if isinstance(action, Call):
        return action.operands
    if isinstance(action, Add):
        return (*action.totals, *action.values)
    if isinstance(action, (Give, Assign)):
        return (action.value,)
    if isinstance(action, Join):
        return action.parts
    return action.values if isinstance(action, Drop) else ()


def fills(action: Action) -> tuple[int, ...]:
    """The slots that an action gives values to."""
    if isinstance(action, Call):
        return action.results
    if isinstance(action, Add):
        return action.totals
    return () if isinstance(action, (Give, Expect, Drop)) else (action.result,)
