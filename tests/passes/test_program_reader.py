"""What a planning reads twice it reads once: modules that say the same are the same program, with their own ops."""

from __future__ import annotations

from staged_steps import layered

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import clone_module, functions
from alpa_mlir.passes.intra.program_reader import read_program
from alpa_mlir.passes.memo import remembering_meanwhile


def test_equal_modules_are_read_once() -> None:
    module, _ = layered("mlp", 4, 3, depth=6)
    one, clone, other = (clone_module(module) for _ in range(3))
    changed = next(iter(functions(other)["microbatch"].regions[0].blocks[0].operations)).operation
    alpa.set_int(changed, alpa.LAYER, 1)
    alone = read_program(clone_module(module))
    with remembering_meanwhile():
        first, again, different = (read_program(m) for m in (one, clone, other))
        sums = read_program(clone_module(module), whole_sums=True)
    assert all(a.kind is b.kind for a, b in zip(first.ops, again.ops, strict=True))
    assert all(a.op != b.op and a.op.name == b.op.name for a, b in zip(first.ops, again.ops, strict=True))
    assert again.module is clone
    places = lambda program: [(o.function, o.phase, o.layer, o.operands) for o in program.ops]  # noqa: E731
    assert places(first) == places(alone) and (first.slots, first.feeds) == (alone.slots, alone.feeds)
    assert places(different) != places(first)
    assert any(slot.additive for slot in first.slots.values()) and not any(s.additive for s in sums.slots.values())
