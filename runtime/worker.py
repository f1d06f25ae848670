"""The instruction loop of one rank: actions are bound to slots and executables once, a step only calls them.

State stays on the devices from step to step.  Batches come from host memory and are cut there.  Nothing is waited for
but messages, at the end of a step its scalar results, and on CPUs the program before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alpa_mlir.dialect.staged import MeshTensor
from alpa_mlir.dialect.tiles import Box
from alpa_mlir.runtime import actions
from alpa_mlir.runtime.compiled import Store
from alpa_mlir.runtime.devices import Submeshes
from alpa_mlir.runtime.executable import Compiler, dtype_of, named
from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.memory import Footprint
from alpa_mlir.runtime.program import Program
from alpa_mlir.runtime.recorder import Recorder
from alpa_mlir.runtime.transfers import Transfers
from alpa_mlir.runtime.transport.base import Array
from alpa_mlir.runtime.transport.memory import copied

COMBINE: Mapping[str, Callable[[Any, Any], Any]] = {"add": jnp.add, "max": jnp.maximum, "min": jnp.minimum}


class Worker:
    """One rank at work on one plan.

    Use: `place` every argument, then `step` as often as wanted (with new `place`s of batches between), and
    `result` for what the last step gave.
    """

    def __init__(
        self,
        program: Program,
        submeshes: Submeshes,
        transfers: Transfers,
        watchdog: Watchdog,
        recorder: Recorder | None = None,
        store: Store | None = None,
        meet: Callable[[], None] | None = None,
    ) -> None:
        """`meet` returns when all ranks call it; with a `store` those that share a submesh then share its compiling."""
        self._program, self._submeshes, self._transfers, self._watchdog = program, submeshes, transfers, watchdog
        self._slots: list[Any] = [None] * program.slots
        self._host: dict[int, Array] = {}
        self._results: list[Any] = []
        self._numbers: dict[tuple[MeshTensor, int], jax.Array] = {}
        self._latest: jax.Array | None = None
        self._running = ""
        transfers.busy = self._busy
        self._compiler = Compiler(store)
        self._trials: dict[Hashable, Callable[[], Any]] = {}
        self._programs: dict[str, tuple[str, jax.stages.Compiled]] = {}
        if store is not None and meet is not None:
            self._compile_share()
            meet()
        self._calls = [self._bind(action) for action in program.actions]
        if recorder is not None:
            calls = zip(program.actions, self._calls, strict=True)
            self._calls = [recorder.watched(action, call, self._slots) for action, call in calls]
        self._state = self._replacements()

    def rehearse(self) -> None:
        """Run every program once on zeros, before values are placed or messages begin.

        A GPU loads a program's code, and XLA connects its devices by NCCL, when it first runs.  Both can wait for
        kernels that run, and those that receive may wait for a rank that is itself at that point.  Left out are
        programs with loops, which may not end on zeros.
        """
        with jax.enable_x64(True):
            for trial in self._trials.values():
                self._watchdog.beat("trying out the programs")
                jax.block_until_ready(trial())

    def _zeros(self, types: Sequence[tuple[tuple[int, ...], Any, Any]]) -> list[jax.Array]:
        """Arrays of these shapes, element types and shardings."""
        made = jax.jit(
            lambda: [jnp.zeros(shape, dtype) for shape, dtype, _ in types], out_shardings=[s for _, _, s in types]
        )
        return list(made())

    @property
    def wanted(self) -> frozenset[int]:
        """The arguments that this rank needs."""
        return frozenset(self._program.placed) | frozenset(self._program.hosted)

    def place(self, number: int, whole: Array) -> None:
        """Give argument `number` its value, whole on the host."""
        program = self._program
        if number in program.hosted:
            self._host[number] = whole
        if number in program.placed:
            kind = program.plan.main.arguments[number].type
            with jax.enable_x64(True):
                self._slots[program.placed[number]] = self._submeshes.put(whole, kind)

    def load(self, number: int, tile: Callable[[Box], Array]) -> None:
        """Give a placed argument its value, of which `tile` reads any box."""
        if number in self._program.placed:
            kind = self._program.plan.main.arguments[number].type
            with jax.enable_x64(True):
                self._slots[self._program.placed[number]] = self._submeshes.put_tiles(tile, kind)

    def kept(self, number: int) -> dict[Box, Array]:
        """The tiles of a placed argument's value that this rank answers for; they change in the next step."""
        if number not in self._program.placed:
            return {}
        kind = self._program.plan.main.arguments[number].type
        return self._submeshes.kept_tiles(self._slots[self._program.placed[number]], kind)

    def step(self) -> None:
        """Run one step; afterwards state arguments hold their new values."""
        with jax.enable_x64(True):
            for call in self._calls:
                call()
            self._transfers.finish("sending the last messages of the step")
            slots, program = self._slots, self._program
            self._latest = None
            self._results = [slots[s] if s >= 0 else None for s in program.results]
            new = [replace() for _, replace in self._state]
            kept = set(program.placed.values())
            for i in range(len(slots)):
                if i not in kept:
                    slots[i] = None
            for (slot, _), value in zip(self._state, new, strict=True):
                slots[slot] = value

    @property
    def values(self) -> list[Any]:
        """The results of the last step where they are; None for those that this rank has no part of."""
        return list(self._results)

    def result(self, number: int) -> Array | None:
        """Result `number` of the last step on rank 0, None elsewhere; all ranks call it in the same order."""
        main = self._program.plan.main
        kind = main.type_of(main.results[number])
        transfer = self._program.transfers + number
        found = self._transfers.gather(self._results[number], kind, transfer, f"gathering result {number}")
        self._transfers.finish(f"sending result {number}")
        return found

    @property
    def footprints(self) -> list[Footprint]:
        """What the stage functions need."""
        found = []
        for name, (mesh, compiled) in self._programs.items():
            sizes = compiled.memory_analysis()
            if sizes is not None:
                working, given = sizes.temp_size_in_bytes, sizes.argument_size_in_bytes
                found.append(Footprint(name, mesh, given, sizes.output_size_in_bytes, working))
        return found

    def wait(self) -> None:
        """Return when the devices have computed the last step's results."""
        jax.block_until_ready([r for r in self._results if r is not None])

    def _bind(self, action: actions.Action) -> Callable[[], None]:
        return _BINDERS[type(action)](self, action)

    def _replacements(self) -> list[tuple[int, Callable[[], Any]]]:
        """For each state argument here: its slot and how to get its new value from the results.

        A value that replaces two arguments, or an argument that stays in its place too, is copied for all but
        one of them: each may be donated in the next step.
        """
        main = self._program.plan.main
        taken = {r.result for r in main.results if r.is_argument and main.arguments[r.result].role != "state"}
        sources = {self._program.placed[i] for i in taken if i in self._program.placed}
        found: list[tuple[int, Callable[[], Any]]] = []
        for number, argument in enumerate(main.arguments):
            slot = self._program.placed.get(number)
            if argument.updates is None or slot is None:
                continue
            source = self._program.results[argument.updates]
            copies = source in sources
            sources.add(source)
            found.append((slot, partial(self._renew, argument.updates, copies)))
        return found

    def _renew(self, result: int, copies: bool) -> Any:
        value = self._results[result]
        return copied(value) if copies else value

    def _call(self, action: actions.Call) -> Callable[[], None]:
        function = self._program.functions[action.function]
        run = self._compiler.compile(function, self._submeshes.mesh(action.mesh))
        self._programs[action.function] = (action.mesh, run)
        if "stablehlo.while" not in function.text:
            mesh = self._submeshes.mesh(action.mesh)
            taken = [(t.shape, dtype_of(t.element), named(mesh, t.sharding)) for t in function.arguments]
            self._trials[action.function] = lambda: run(*self._zeros(taken))
        slots, operands, results = self._slots, action.operands, action.results
        watchdog, transfers, what, settles = self._watchdog, self._transfers, action.what, action.settles
        smallest = min(range(len(results)), key=lambda i: prod(function.results[i].shape), default=None)
        platform = self._submeshes.mesh(action.mesh).devices.flat[0].platform
        in_turn = platform == "cpu" and len(self._program.meshes) == 1

        def call() -> None:
            if settles:
                transfers.settle(what)
            if in_turn:
                self._await_turn()
            self._running = what
            watchdog.beat(what)
            for slot, value in zip(results, run(*[slots[i] for i in operands]), strict=True):
                slots[slot] = value
            if smallest is not None:
                self._latest = slots[results[smallest]]
            transfers.progress()

        return call

    def _await_turn(self) -> None:
        """Let the last program end: XLA's CPU devices would run what is dispatched next beside it, not behind it, and
        take memory for it now."""
        latest = self._latest
        if latest is not None and not latest.is_deleted() and not latest.is_ready():
            self._watchdog.beat(self._running)
            self._transfers.until_computed(latest)

    def _busy(self) -> bool:
        """Whether the last program is not done."""
        latest = self._latest
        return latest is not None and not latest.is_deleted() and not latest.is_ready()

    def _cut(self, action: actions.Cut) -> Callable[[], None]:
        size = action.type.shape[action.dim]
        window = (slice(None),) * action.dim + (slice(action.microbatch * size, (action.microbatch + 1) * size),)
        put, slots, host, argument, result = (
            self._submeshes.putter(action.type), self._slots, self._host, action.argument, action.result,
        )  # fmt: skip

        def cut() -> None:
            slots[result] = put(host[argument][window])

        return cut

    def _number(self, action: actions.Number) -> Callable[[], None]:
        key = (action.type, action.microbatch)

        def number() -> None:
            if key not in self._numbers:
                value = np.asarray(action.microbatch, dtype_of(action.type.element))
                self._numbers[key] = self._submeshes.put(value, action.type)
            self._slots[action.result] = self._numbers[key]

        return number

    def _give(self, action: actions.Give) -> Callable[[], None]:
        give, slots, value = self._transfers.giver(action.path, action.transfer, action.keep), self._slots, action.value
        return lambda: give(slots[value])

    def _expect(self, action: actions.Expect) -> Callable[[], None]:
        return self._transfers.expecter(action.path, action.transfer)

    def _take(self, action: actions.Take) -> Callable[[], None]:
        take = self._transfers.taker(action.path, action.transfer, action.what, action.owned)
        slots, result = self._slots, action.result

        def fill() -> None:
            slots[result] = take()

        return fill

    def _assign(self, action: actions.Assign) -> Callable[[], None]:
        def assign() -> None:
            self._slots[action.result] = self._slots[action.value]

        return assign

    def _add(self, action: actions.Add) -> Callable[[], None]:
        run = self._compile_add(action)
        slots, totals, values = self._slots, action.totals, action.values
        given = tuple(i for i, d in enumerate(action.donate) if d)
        kept = tuple(i for i, d in enumerate(action.donate) if not d)
        kinds = [(t.shape, dtype_of(t.element), self._submeshes.sharding(t)) for t in action.types]

        def trial() -> Any:
            old, fresh = self._zeros(kinds), self._zeros(kinds)
            return run([old[i] for i in given], [old[i] for i in kept], fresh)

        self._trials["add", action.combine, action.types, action.donate] = trial

        over, apart = [totals[i] for i in given], [totals[i] for i in kept]

        def add() -> None:
            new = run([slots[i] for i in over], [slots[i] for i in apart], [slots[i] for i in values])
            for slot, value in zip(totals, new, strict=True):
                slots[slot] = value
            self._latest = slots[totals[0]]

        return add

    def _compile_share(self) -> None:
        """Compile what falls to this rank of the programs that others need too: they will find it in the store.

        Only on CPUs: for GPUs XLA tunes a program in all processes at once, and waits for those that compile another.
        """
        functions, submeshes = self._program.functions, self._submeshes
        calls = {a.function: a.mesh for a in self._program.actions if isinstance(a, actions.Call)}
        for mesh in sorted(set(calls.values())):
            devices = list(submeshes.mesh(mesh).devices.flat)
            peers = sorted({d.process_index for d in devices if d.platform == "cpu"})
            if len(peers) < 2:
                continue
            here = [name for name, other in calls.items() if other == mesh]
            shares = shared_out({name: len(functions[name].text) for name in here}, len(peers))
            for name in here:
                if peers[shares[name]] == jax.process_index():
                    self._compiler.compile(functions[name], submeshes.mesh(mesh))

    def _compile_add(self, action: actions.Add) -> jax.stages.Compiled:
        """One program for several sums; totals that may be overwritten come apart from those that may not."""
        combine, types, donate = action.combine, action.types, action.donate
        order = [i for i, d in enumerate(donate) if d] + [i for i, d in enumerate(donate) if not d]

        def accumulate(given: list[Any], kept: list[Any], fresh: list[Any]) -> list[Any]:
            totals = dict(zip(order, [*given, *kept], strict=True))
            return [COMBINE[how](totals[i], fresh[i]) for i, how in enumerate(combine)]

        def lower() -> jax.stages.Lowered:
            avals = [self._aval(t) for t in types]
            given = [a for a, d in zip(avals, donate, strict=True) if d]
            kept = [a for a, d in zip(avals, donate, strict=True) if not d]
            shardings = [self._submeshes.sharding(t) for t in types]
            jitted = jax.jit(accumulate, out_shardings=shardings, donate_argnums=0, keep_unused=True)
            return jitted.lower(given, kept, avals)

        what = ("add", combine, types, donate)
        return self._compiler.obtain(what, self._submeshes.mesh(action.mesh), lower, "an accumulation")

    def _join(self, action: actions.Join) -> Callable[[], None]:
        def lower() -> jax.stages.Lowered:
            sharding = self._submeshes.sharding(action.type)
            jitted = jax.jit(lambda parts: jnp.concatenate(parts, axis=action.dim), out_shardings=sharding)
            return jitted.lower([self._aval(action.part)] * len(action.parts))

        what = ("join", action.part, len(action.parts), action.type, action.dim)
        run = self._compiler.obtain(what, self._submeshes.mesh(action.type.mesh), lower, "a concatenation")
        part = (action.part.shape, dtype_of(action.part.element), self._submeshes.sharding(action.part))
        self._trials[what] = lambda: run(self._zeros([part] * len(action.parts)))

        def join() -> None:
            self._slots[action.result] = run([self._slots[i] for i in action.parts])

        return join

    def _aval(self, kind: MeshTensor) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(kind.shape, dtype_of(kind.element), sharding=self._submeshes.sharding(kind))

    def _drop(self, action: actions.Drop) -> Callable[[], None]:
        slots, values = self._slots, action.values

        def drop() -> None:
            for i in values:
                slots[i] = None

        return drop


def shared_out(work: Mapping[str, int], workers: int) -> dict[str, int]:
    """A worker for each piece of work, so that none has much more than the others: the largest first."""
    loads, found = [0] * workers, {}
    for name, size in sorted(work.items(), key=lambda item: (-item[1], item[0])):
        found[name] = loads.index(min(loads))
        loads[found[name]] += size
    return found


_BINDERS: dict[type, Callable[[Worker, Any], Callable[[], None]]] = {
    actions.Call: Worker._call,
    actions.Cut: Worker._cut,
    actions.Number: Worker._number,
    actions.Give: Worker._give,
    actions.Expect: Worker._expect,
    actions.Take: Worker._take,
    actions.Assign: Worker._assign,
    actions.Add: Worker._add,
    actions.Join: Worker._join,
    actions.Drop: Worker._drop,
}
