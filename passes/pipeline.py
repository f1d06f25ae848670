"""Pipelines: a text such as `builtin.module(alpa-normalize,canonicalize,alpa-layers{count=4})` read and run.

The syntax is MLIR's.  Our passes stand at module level; runs of upstream passes between them are given to
the C++ pass manager in one piece.  MLIR cannot name a Python pass in a pipeline text, hence the parser
here.  After each of our passes the module is verified twice: by MLIR and by the `alpa.*` declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxlib.mlir import ir

from alpa_mlir.dialect import alpa
from alpa_mlir.dialect.context import functions, passmanager
from alpa_mlir.dialect.diagnostics import CompileError, Remark, from_mlir_error, location_text
from alpa_mlir.passes.registry import Pass, PipelineError, pass_from_text, pass_to_text, registered
from alpa_mlir.passes.upstream import FUNCTION, MODULE, ON_FUNCTIONS, check_input, check_name

FIRST = "alpa-normalize"
"""The pass that takes any program; the others need one whose functions have bodies."""


@dataclass(frozen=True)
class Upstream:
    """One element of a pipeline that the C++ pass manager runs on the module: `cse`, `func.func(a,b{c=1})`."""

    text: str
    names: tuple[str, ...]


Step = Pass | Upstream
AfterEach = Callable[[str, ir.Module], None]
"""Called with the text of the step and the module."""


@dataclass(frozen=True)
class _Item:
    """`name{options}` or, with `inner`, `name(inner, …)`."""

    name: str
    options: str | None = None
    inner: tuple[_Item, ...] | None = None

    def __str__(self) -> str:
        if self.inner is not None:
            return f"{self.name}({','.join(str(i) for i in self.inner)})"
        return self.name if self.options is None else f"{self.name}{{{self.options}}}"


def parse_pipeline(text: str) -> tuple[Step, ...]:
    """The steps of a pipeline; the outer `builtin.module(…)` may be left out.

    Raises `PipelineError` for syntax, unknown passes and options, and wrong nesting.
    """
    items = _Scanner(text).pipeline()
    if len(items) == 1 and items[0].name == MODULE and items[0].inner is not None:
        items = items[0].inner
    return tuple(_step(item) for item in items)


def step_from_flag(name: str, options: str | None) -> Step:
    """The step that `--name` or `--name="a=1 b=2"` stands for; upstream function passes are nested as they need."""
    item = _Item(name, options)
    if name in ON_FUNCTIONS:
        item = _Item(FUNCTION, None, (item,))
    return _step(item)


def step_to_text(step: Step) -> str:
    """One step as `parse_pipeline` reads it."""
    return step.text if isinstance(step, Upstream) else pass_to_text(step)


def pipeline_to_text(steps: Sequence[Step]) -> str:
    """The steps as `parse_pipeline` reads them."""
    return f"{MODULE}({','.join(step_to_text(step) for step in steps)})"


def _step(item: _Item) -> Step:
    if item.inner is None and item.name in registered():
        return pass_from_text(str(item))
    names = _check_upstream(item, MODULE)
    return Upstream(str(item), names)


def _check_upstream(item: _Item, anchor: str) -> tuple[str, ...]:
    if item.inner is None:
        if item.name in registered():
            raise PipelineError(f"{item.name} runs on the module: take it out of {anchor}(…)")
        check_name(item.name, anchor)
        return (item.name,)
    if item.name != FUNCTION or anchor != MODULE:
        raise PipelineError(f"'{item.name}(…)' cannot be nested in {anchor}: only func.func(…) in builtin.module(…)")
    return tuple(name for inner in item.inner for name in _check_upstream(inner, FUNCTION))


class _Scanner:
    """Recursive descent over a pipeline text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pipeline(self) -> tuple[_Item, ...]:
        self._space()
        if self.at == len(self.text):
            return ()
        items = self._items()
        if self.at != len(self.text):
            raise self._error("expected ',' or the end")
        return items

    def _items(self) -> tuple[_Item, ...]:
        items = [self._item()]
        while self._accept(","):
            items.append(self._item())
        return tuple(items)

    def _item(self) -> _Item:
        self._space()
        start = self.at
        while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] in "-_."):
            self.at += 1
        name = self.text[start : self.at]
        if not name:
            raise self._error("expected the name of a pass")
        if self._accept("("):
            inner = () if self._peek() == ")" else self._items()
            if not self._accept(")"):
                raise self._error("expected ',' or ')'")
            return _Item(name, None, inner)
        if self._peek() == "{":
            return _Item(name, self._braced())
        self._space()
        return _Item(name)

    def _braced(self) -> str:
        start, depth, quote = self.at, 0, ""
        while self.at < len(self.text):
            c = self.text[self.at]
            self.at += 1
            if quote:
                quote = "" if c == quote else quote
            elif c in "\"'":
                quote = c
            elif c in "{}":
                depth += 1 if c == "{" else -1
                if depth == 0:
                    inside = self.text[start + 1 : self.at - 1]
                    self._space()
                    return inside
        self.at = start
        raise self._error("this brace is not closed")

    def _space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _peek(self) -> str:
        self._space()
        return self.text[self.at : self.at + 1]

    def _accept(self, c: str) -> bool:
        if self._peek() != c:
            return False
        self.at += 1
        self._space()
        return True

    def _error(self, message: str) -> PipelineError:
        return PipelineError(f"pipeline '{self.text}', character {self.at + 1}: {message}")


def run_pipeline(
    module: ir.Module,
    pipeline: str | Sequence[Step],
    remarks: list[Remark],
    *,
    verify_each: bool = True,
    before_each: AfterEach | None = None,
    after_each: AfterEach | None = None,
) -> None:
    """Run a pipeline on `module` in place, appending notes to the user to `remarks`.

    Raises `PipelineError` for a text that cannot be read, `CompileError` where a pass refuses the program
    or leaves one behind that does not verify.
    """
    steps = parse_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
    watched = before_each is not None or after_each is not None
    for step in steps if watched else _joined(steps):
        text = step_to_text(step)
        if before_each is not None:
            before_each(text, module)
        if isinstance(step, Upstream):
            _run_upstream(module, step, remarks, verify_each)
        else:
            if step.name != FIRST:
                _require_bodies(module)
            step.apply(module, remarks)
            if verify_each:
                verify(module, step.name)
        if after_each is not None:
            after_each(text, module)


def _require_bodies(module: ir.Module) -> None:
    for name, function in functions(module).items():
        if len(function.regions[0].blocks) == 0:
            raise CompileError(f"@{name} has no body: run {FIRST} first", function.location)


def verify(module: ir.Module, after: str) -> None:
    """Check the module with MLIR's verifiers and the `alpa.*` declarations; `CompileError` names `after`."""
    try:
        module.operation.verify()
        alpa.verify(module)
    except ir.MLIRError as e:
        found = from_mlir_error(e)
        raise CompileError(f"{after} left an invalid module: {found.message}", found.location, found.notes) from None
    except CompileError as e:
        raise CompileError(f"{after} left an invalid module: {e.message}", e.location, e.notes) from None


def _joined(steps: Sequence[Step]) -> list[Step]:
    """The same steps with neighbouring upstream ones in one piece."""
    joined: list[Step] = []
    for step in steps:
        last = joined[-1] if joined else None
        if isinstance(step, Upstream) and isinstance(last, Upstream) and not _guarded(step):
            joined[-1] = Upstream(f"{last.text},{step.text}", last.names + step.names)
        else:
            joined.append(step)
    return joined


def _guarded(step: Upstream) -> bool:
    """Whether the input of this step must be looked at right before it runs."""
    return any(n.startswith("sdy-") or n == "inline" for n in step.names)


def _run_upstream(module: ir.Module, step: Upstream, remarks: list[Remark], verify_each: bool) -> None:
    check_input(step.names, module)

    def keep(diagnostic: ir.Diagnostic) -> bool:
        severity = diagnostic.severity
        if severity == ir.DiagnosticSeverity.ERROR:
            return False
        word = "warning" if severity == ir.DiagnosticSeverity.WARNING else "remark"
        remarks.append(Remark(str(diagnostic.message), location_text(diagnostic.location), word))
        return True

    try:
        manager = passmanager.PassManager.parse(f"{MODULE}({step.text})", module.context)
    except ir.MLIRError as e:
        raise PipelineError(f"'{step.text}': {from_mlir_error(e).message}") from None
    except ValueError as e:
        raise PipelineError(f"'{step.text}': {_first_line(str(e))}") from None
    manager.enable_verifier(verify_each)
    handler = module.context.attach_diagnostic_handler(keep)
    try:
        manager.run(module.operation)
    except ir.MLIRError as e:
        found = from_mlir_error(e)
        raise CompileError(f"{'/'.join(step.names)}: {found.message}", found.location, found.notes) from None
    finally:
        handler.detach()


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]
