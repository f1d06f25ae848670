"""Which forms of which values one microbatch needs: a backward walk from what leaves it.

The analysis says what each value *is*; this says what is *wanted*.  A value may be wanted

* ``LOCAL``  as its state says: a microbatch's piece, a part of a sum, a whole invariant, an estimate;
* ``RAW``    the local part of a sum whose estimate is used elsewhere;
* ``WHOLE``  finished although the microbatches still run: computed beforehand, an argument;
* split      an invariant or whole value cut along the batch, to meet a split operand.

A split form is made by shrinking the producer where its factors allow it (a mask broadcast along
the batch is broadcast to the microbatch only; random bits are hashed for its positions only), through
loops as well, else by slicing.  What nobody wants is not emitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxlib.mlir import ir

from alpa_mlir.dialect.context import op_id
from alpa_mlir.dialect.factors import PASS, added_once
from alpa_mlir.dialect.rounds import leaves_by_end
from alpa_mlir.passes.local.time_analysis import TimeAnalysis, inputs
from alpa_mlir.passes.local.time_states import STATISTIC, Place, State, locate, standing

LOCAL = State("local")
RAW = State("raw")
WHOLE = State("whole")
Form = State
BARRIER = "stablehlo.optimization_barrier"


@dataclass
class BlockDemand:
    """The wishes for the values of one block (a function's or, per variant, a loop's).

    forms:    per value the forms wanted of it;  natural: ops emitted as their states say;
    shrunk:   per op the places on which it is emitted smaller although its result is not split;
    sliced:   per value the split forms cut from its base form;
    variants: per loop or branch the forms of its carried values and the demands of its blocks;
    ends:     the terminator's operands with the form each leaves in;
    trial:    wishes for outer values are dropped (used to try a variant).
    """

    analysis: TimeAnalysis
    block: ir.Block
    parent: BlockDemand | None = None
    trial: bool = False
    forms: dict[ir.Value, dict[Form, None]] = field(default_factory=dict)
    natural: dict[int, None] = field(default_factory=dict)
    shrunk: dict[int, dict[Place, None]] = field(default_factory=dict)
    sliced: dict[ir.Value, dict[Form, None]] = field(default_factory=dict)
    variants: dict[int, list[tuple[tuple[Form, ...], list[BlockDemand]]]] = field(default_factory=dict)
    ends: list[tuple[ir.Value, Form]] = field(default_factory=list)
    own: dict[ir.Value, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ops = [op.operation for op in self.block.operations]
        self.own.update(dict.fromkeys(self.block.arguments))
        for op in self.ops:
            self.own.update(dict.fromkeys(op.results))

    def canonical(self, value: ir.Value, form: Form) -> Form:
        """The same form by one name: a split value's own split is LOCAL, with one microbatch all is base."""
        if not form.is_split:
            return form
        if self.analysis.state(value).is_split or self.analysis.parts == 1:
            return self.base(value)
        return form

    def base(self, value: ir.Value) -> Form:
        """The form in which a microbatch reads a value that it does not split."""
        return WHOLE if self.analysis.state(value).kind in ("finished", "partial") else LOCAL

    def ask(self, value: ir.Value, form: Form) -> None:
        """Want a form of a value of this block or of one around it."""
        if value in self.own:
            self.forms.setdefault(value, {})[self.canonical(value, form)] = None
        elif self.parent is not None and not self.trial:
            self.parent.ask(value, form)

    def end(self, values: Sequence[ir.Value], forms: Sequence[Form]) -> None:
        """Want the terminator's operands."""
        for value, form in zip(values, forms, strict=True):
            form = self.canonical(value, form)
            self.ends.append((value, form))
            self.ask(value, form)

    def process(self, entering: Sequence[Form] = ()) -> None:
        """Walk backwards over the block and ask for operands; arguments come in the forms `entering`, else LOCAL."""
        passed_on = leaves_by_end(self.ops[:-1])
        following = len(self.ops) - 1
        while following >= 0:
            position, following = following, following - 1
            op = self.ops[position]
            if any(r in self.forms for r in op.results):
                self._serve_all(op)
                for place in passed_on.get(position, ()):
                    value = self.ops[place].results[0]
                    if value not in self.forms:
                        following = max(following, place)
                    self.ask(value, LOCAL)
        for i, argument in enumerate(self.block.arguments):
            for form in list(self.forms.get(argument, ())):
                if form.is_split and form not in entering[i : i + 1] and not self.trial:
                    self._slice(argument, form)

    def _serve_all(self, op: ir.Operation) -> None:
        wanted = {r: [f for f in self.forms.get(r, ()) if f.is_split] for r in op.results}
        if op.name == "stablehlo.while" and any(wanted.values()):
            self._serve_split_loop(op, wanted)
        else:
            for result, forms in wanted.items():
                for form in forms:
                    self._serve_split(op, result, form)
        if op.name == BARRIER:
            for value, result in zip(op.operands, op.results, strict=True):
                if LOCAL in self.forms.get(result, ()):
                    self.ask(value, LOCAL)
            return
        if any(LOCAL in self.forms.get(r, ()) or RAW in self.forms.get(r, ()) for r in op.results):
            self._serve_natural(op)

    def _serve_natural(self, op: ir.Operation) -> None:
        number = op_id(op)
        self.natural[number] = None
        if number in self.analysis.entered:
            forms = tuple(s if s.is_split else LOCAL for s in map(self.analysis.state, op.results))
            self.variants.setdefault(number, []).append((forms, self._enter(op, forms, trial=False)))
            return
        place = self.analysis.places.get(number)
        for i, value in enumerate(inputs(op)):
            self.ask(value, self.operand_form(op, i, value, place))

    def operand_form(self, op: ir.Operation, i: int, value: ir.Value, place: Place | None) -> Form:
        """How input `i` enters the natural form of an op."""
        analysis = self.analysis
        state = analysis.state(value)
        if place is not None:
            factors = analysis.factors[op_id(op)]
            if i < len(factors.operands):  # what regions capture comes after the operands
                stands = standing(factors.operands[i], factors.sizes, place)
                if stands is not None:
                    return self.canonical(value, stands)
            sums = i in added_once(op)
        else:
            sums = any(analysis.state(r).is_partial or r in analysis.statistics for r in op.results)
        return LOCAL if state.is_partial and sums else self.base(value)

    def shrunk_form(self, op: ir.Operation, i: int, value: ir.Value, place: Place) -> Form:
        """How operand `i` enters an op that is emitted on `place` although nothing in it is split."""
        factors = self.analysis.factors[op_id(op)]
        stands = standing(factors.operands[i], factors.sizes, place)
        return self.canonical(value, stands) if stands is not None else self.base(value)

    def _serve_split(self, op: ir.Operation, result: ir.Value, form: Form) -> None:
        if op.name == BARRIER:
            self.ask(op.operands[list(op.results).index(result)], form)
            return
        place = self._shrinkable(op, result, form)
        if place is None:
            self._slice(result, form)
            return
        self.shrunk.setdefault(op_id(op), {})[place] = None
        for i, value in enumerate(op.operands):
            self.ask(value, self.shrunk_form(op, i, value, place))

    def _slice(self, value: ir.Value, form: Form) -> None:
        self.sliced.setdefault(value, {})[form] = None
        self.ask(value, self.base(value))

    def _shrinkable(self, op: ir.Operation, result: ir.Value, form: Form) -> Place | None:
        """The place on which the producer yields just this form, None if it must be whole."""
        analysis, number = self.analysis, op_id(op)
        if number in analysis.places or result in analysis.statistics:
            return None
        if any(analysis.state(v).is_split for v in op.operands):
            return None
        factors = analysis.factors[number]
        index = list(op.results).index(result)
        place = locate(factors.results[index][form.dim], factors.sizes, form.outer, analysis.parts)
        if place is None or factors.kinds[place.factor] != PASS:
            return None
        if op.name in ("stablehlo.constant", "stablehlo.iota") and form.outer != 1 and _position_dependent(op, form):
            return None
        everywhere = all(standing(m, factors.sizes, place) is not None for m in factors.results)
        return place if everywhere else None

    def _serve_split_loop(self, op: ir.Operation, wanted: dict[ir.Value, list[Form]]) -> None:
        """Try to run a loop without examples (hashing of random bits, say) on the microbatch's part only."""
        one_each = all(len(forms) <= 1 for forms in wanted.values())
        forms = self._settle(op, [w[0] if w else LOCAL for w in wanted.values()]) if one_each else None
        if forms is None:
            for result, splits in wanted.items():
                for form in splits:
                    self._slice(result, form)
            return
        blocks = self._enter(op, forms, trial=False)
        self.variants.setdefault(op_id(op), []).append((forms, blocks))

    def _settle(self, op: ir.Operation, wanted: list[Form]) -> tuple[Form, ...] | None:
        """The forms of all carried values, such that the body can go round; None if some are needed whole too."""
        if op_id(op) in self.analysis.entered or any(self.analysis.state(r) == STATISTIC for r in op.results):
            return None
        forms = list(wanted)
        for _ in range(len(forms) + 1):
            condition, body = self._enter(op, tuple(forms), trial=True)
            changed = False
            for i in range(len(forms)):
                asked = [
                    *condition.forms.get(condition.block.arguments[i], {}),
                    *body.forms.get(body.block.arguments[i], {}),
                ]
                if forms[i].is_split and any(f != forms[i] for f in asked):
                    return None
                if not forms[i].is_split and asked and asked[0].is_split and len({*asked}) == 1:
                    forms[i], changed = asked[0], True
            if not changed:
                return tuple(forms)
        return None

    def _enter(self, op: ir.Operation, forms: tuple[Form, ...], trial: bool) -> list[BlockDemand]:
        """The demands of a loop's or branch's blocks when its results are wanted in `forms`."""
        blocks = [BlockDemand(self.analysis, region.blocks[0], self, trial) for region in op.regions]
        loop = op.name == "stablehlo.while"
        for n, inner in enumerate(blocks):
            values = list(inner.ops[-1].operands)
            leaving = [LOCAL] if loop and n == 0 else forms
            inner.end(values, [_leave(inner, v, f) for v, f in zip(values, leaving, strict=True)])
            inner.process(forms if loop else ())
        if not trial:
            for value, form in zip(op.operands, forms if loop else [LOCAL], strict=True):
                self.ask(value, _leave(self, value, form))
        return blocks


def _leave(demand: BlockDemand, value: ir.Value, form: Form) -> Form:
    """The form in which a value becomes a carried value of `form`: a whole one may come from beforehand."""
    if form.is_split or demand.analysis.state(value).is_partial:
        return form
    return demand.base(value)


def _position_dependent(op: ir.Operation, form: Form) -> bool:
    if op.name == "stablehlo.iota":
        return int(ir.IntegerAttr(op.attributes["iota_dimension"]).value) == form.dim
    return not ir.DenseElementsAttr(op.attributes["value"]).is_splat
