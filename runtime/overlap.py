"""Where messages stand among the actions of a rank, so that they overlap with computation.

The plan's lists are safe for sends that block, so a receive may stand before a send that has its value already, and
work that does not need what is received behind it.  Ours do not block, so here each half goes where it is best:

* a *give* right behind what makes its value: the value leaves as soon as it is computed;
* an *expect* one stage function before the plan's receive: the message lands meanwhile, in memory of its own;
* a *take*, the only one that waits, right before what needs its value.

Nothing else moves, and gives keep their order among themselves.  The actions of all ranks still have a total order in
which each comes after what it needs, so nothing waits in a circle (see `order`).
"""

from __future__ import annotations

from collections.abc import Sequence

from alpa_mlir.runtime.actions import Action, Call, Expect, Give, Take, fills, reads


def overlapped(actions: Sequence[Action]) -> tuple[Action, ...]:
    """The same actions, and an `Expect` for each `Take`, with all halves of transfers in their places."""
    return _late_takes(_early_gives(_with_expects(actions)))


def _with_expects(actions: Sequence[Action]) -> list[Action]:
    found: list[Action] = []
    call = 0
    for action in actions:
        if isinstance(action, Take):
            found.insert(call, Expect(action.path, action.transfer))
            call += 1
        elif isinstance(action, Call):
            call = len(found)
        found.append(action)
    return found


def _early_gives(actions: Sequence[Action]) -> list[Action]:
    rest = [a for a in actions if not isinstance(a, Give)]
    made = {slot: place for place, action in enumerate(rest, 1) for slot in fills(action)}
    found: list[Action] = []
    behind = 0
    for give in (a for a in actions if isinstance(a, Give)):
        place = max(behind, made.get(give.value, 0))
        found += [*rest[behind:place], give]
        behind = place
    return found + rest[behind:]


def _late_takes(actions: Sequence[Action]) -> tuple[Action, ...]:
    found: list[Action] = []
    waiting: dict[int, Take] = {}
    for action in actions:
        if isinstance(action, Take):
            waiting[action.result] = action
            continue
        found.extend(waiting.pop(slot) for slot in dict.fromkeys(reads(action)) if slot in waiting)
        found.append(action)
    return (*found, *waiting.values())
