"""Passes by name: one pass, one frozen dataclass; its fields are its options.

The command line, the pipeline parser and `docs/passes.md` derive from the declarations here.
A pass changes the module in place; bad input raises `CompileError`, notes to the user are appended
to `remarks`.  (The contract is xDSL's `ModulePass`: a frozen dataclass with a `name`.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from jaxlib.mlir import ir

from alpa_mlir.dialect.diagnostics import Remark


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. The docstring of a pass is its specification (IR before, IR after, options).

    Fields are options: `int`, `float`, `str`, `bool`, `tuple[int, ...]`, each with a default, each made by
    `option(default, "what it means")`.  The field `batch_args` is spelt `batch-args` in pipelines.
    """

    name: ClassVar[str]

    @abstractmethod
    def apply(self, module: ir.Module, remarks: list[Remark]) -> None:
        """Rewrite `module` in place."""


def option(default: Any, meaning: str) -> Any:
    """A dataclass field that is an option of a pass, with its help text."""
    return field(default=default, metadata={"help": meaning})


P = TypeVar("P", bound=type[Pass])
_PASSES: dict[str, type[Pass]] = {}


def register(cls: P) -> P:
    """Class decorator: make a pass known by its name."""
    if cls.name in _PASSES:
        raise ValueError(f"two passes are called {cls.name}")
    _PASSES[cls.name] = cls
    return cls


def registered() -> dict[str, type[Pass]]:
    """All registered passes by name, sorted."""
    return dict(sorted(_PASSES.items()))
