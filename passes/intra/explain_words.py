"""Explanations as remarks at the ops: what was chosen, what it costs, what comes next; what if more had to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.diagnostics import CompileError, Remark, location_names, location_text
from alpa_mlir.passes.intra.explain import Explainer, Reshard, RunnerUp, Terms, changed
from alpa_mlir.passes.intra.graph import Node
from alpa_mlir.passes.intra.program import Program
from alpa_mlir.passes.intra.stages import Solved, SolvedStage
from alpa_mlir.passes.intra.words import (
    bytes_text,
    einsum,
    placement_text,
    seconds_text,
    sharding_text,
    steps_text,
    strategy_text,
)

LARGEST = 10
"""How many of the decisions that a what-if changes are named."""


@dataclass(frozen=True, eq=False)
class Speaker:
    """Words about the decisions of a program's stages."""

    program: Program
    solved: Solved
    solver: str
    step: float
    """Predicted seconds of a step: what differences are parts of."""

    def explain(self, only: str, most: int) -> list[Remark]:
        """Remarks on the decisions that `only` names, the `most` dearest of each stage (0: all).

        CompileError where it names none.
        """
        found: list[Remark] = []
        for stage in self.solved.stages:
            explainer = Explainer(stage.graph, stage.found.labels, stage.spec.memory, self.solver)
            nodes = [*stage.graph.of_op.values(), *stage.graph.of_slot.values()]
            wanted = [v for v in nodes if self._is_called(stage.graph.nodes[v], only)]
            if most and len(wanted) > most:
                dearest = sorted(wanted, key=lambda v: (-explainer.seconds(v), v))[:most]
                wanted = [v for v in wanted if v in dearest]
            for node in wanted:
                found += self._decision(explainer, node)
        if not found:
            where = location_text(self.program.module.operation.location)
            raise CompileError(
                f"nothing that is decided is called {only}: constants, and what was simplified away, are not", where
            )
        return found

    def _is_called(self, node: Node, only: str) -> bool:
        if node.source.op < 0:
            binding = alpa.Binding.parse(node.source.slot)
            names = [node.source.slot, f"arg{binding.number}", f"%arg{binding.number}"]
            names = names if binding.kind in ("arg", "batch") else names[:1]
            argument = self.program.argument(node.source.slot)
            names += location_names(argument.location) if argument is not None else ()
        else:
            op = self.program.ops[node.source.op].op
            names = [op.name, *location_names(op.location)]
        patterns = [p.strip() for p in only.split(";")]
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    def _where(self, node: Node) -> str:
        if node.source.op >= 0:
            return location_text(self.program.ops[node.source.op].op.location)
        argument = self.program.argument(node.source.slot)
        return location_text(argument.location if argument is not None else self.program.module.operation.location)

    def _who(self, node: Node) -> str:
        if node.source.op < 0:
            return node.source.slot.replace(":", "")
        name: str = self.program.ops[node.source.op].op.name
        return name

    def _decision(self, explainer: Explainer, node: int) -> Iterator[Remark]:
        place = explainer.graph.nodes[node]
        where, terms = self._where(place), explainer.terms(node)
        meaning = f" {einsum(self.program.ops[place.source.op].factors)}" if place.source.op >= 0 else ""
        head = f"{self._who(place)}{meaning}: {self._strategy(place, terms)}"
        yield Remark(f"{head}: {seconds_text(terms.seconds)} of a step", where)
        for text in self._terms(explainer, node, terms):
            yield Remark(text, where, "note")
        runner_up = explainer.runner_up(node)
        if runner_up is None:
            why = "it has no other strategy" if len(place.choices) == 1 else "no other strategy fits in memory"
            yield Remark(f"no runner-up: {why}", where, "note")
            return
        yield Remark(self._runner_up(place, runner_up), where, "note")
        for text in self._terms(explainer, node, runner_up.terms):
            yield Remark(f"runner-up: {text}", where, "note")

    def _strategy(self, place: Node, terms: Terms) -> str:
        if place.source.op < 0:
            return strategy_text(terms.strategy)
        factors = self.program.ops[place.source.op].factors
        return f"{placement_text(terms.strategy, factors)}: {strategy_text(terms.strategy)}"

    def _terms(self, explainer: Explainer, node: int, terms: Terms) -> Iterator[str]:
        times = f" in {terms.weight} runs" if terms.weight > 1 else ""
        if terms.compute:
            yield f"compute {seconds_text(terms.compute)}{times}"
        if terms.strategy.ending:
            yield f"{steps_text(terms.strategy.ending)} {seconds_text(terms.ending)}{times}"
        for reshard in terms.reshards:
            yield self._reshard(explainer, node, reshard)
        yield f"holds {bytes_text(terms.held)} per device"

    def _reshard(self, explainer: Explainer, node: int, reshard: Reshard) -> str:
        change = f"{sharding_text(reshard.source)} to {sharding_text(reshard.target)}"
        cost = f"{steps_text(reshard.steps)} {seconds_text(reshard.seconds)}"
        if reshard.consumer == node:
            return f"operand {reshard.operand} from {change}: {cost}"
        shared = any(reshard.consumer in chain for chain in explainer.graph.of_copy.values())
        who = "products that share it" if shared else self._who(explainer.graph.nodes[reshard.consumer])
        return f"result for {who} from {change}: {cost}"

    def _runner_up(self, place: Node, other: RunnerUp) -> str:
        with_others = f", with {other.changed} other decisions changed" if other.changed else ""
        return f"runner-up: {self._strategy(place, other.terms)}: {self._more(other.difference)}{with_others}"

    def _more(self, seconds: float) -> str:
        share = f" ({100 * seconds / self.step:+.2g} %)" if self.step > 0 else ""
        return f"{'+' if seconds >= 0 else '-'}{seconds_text(abs(seconds))} a step{share}"

    def what_if(self, text: str, again: Callable[[], Solved], step_of: Callable[[Solved], float]) -> list[Remark]:
        """Remarks on the plan under more constraints: `again` solves, `step_of` prices."""
        where = location_text(self.program.module.operation.location)
        try:
            other = again()
        except CompileError as e:
            notes = [n if isinstance(n, Remark) else Remark(n, e.location, "note") for n in e.notes]
            return [Remark(f"what if {text}: it cannot be: {e.message}", where), *notes]
        pairs = [
            (stage, after, nodes)
            for stage, after in zip(self.solved.stages, other.stages, strict=True)
            for nodes in changed(stage.graph, after.graph, (stage.found.labels, after.found.labels))
        ]
        old, new = (bytes_text(max(s.cost.memory_bytes for s in solved.stages)) for solved in (self.solved, other))
        step = step_of(other)
        head = (
            f"what if {text}: {seconds_text(step)} instead of {seconds_text(self.step)} a step "
            f"({100 * (step / self.step - 1):+.2g} %), at most {new} instead of {old} per device, "
            f"{len(pairs)} decisions are others"
        )
        largest = sorted(pairs, key=lambda p: -self._weight(p[0], p[2][0]))[:LARGEST]
        return [Remark(head, where), *(self._change(*pair) for pair in largest)]

    def _weight(self, stage: SolvedStage, node: int) -> float:
        return float(stage.graph.nodes[node].choices.bytes[0].max(initial=0.0))

    def _change(self, before: SolvedStage, after: SolvedStage, nodes: tuple[int, int]) -> Remark:
        place = before.graph.nodes[nodes[0]]
        old = before.graph.strategy(nodes[0], before.found.labels)
        new = after.graph.strategy(nodes[1], after.found.labels)
        text = f"{self._who(place)}: {strategy_text(new)} instead of {strategy_text(old)}"
        return Remark(text, self._where(place), "note")
