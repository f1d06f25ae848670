"""The arguments of a run: drawn from a seed, or read from an `.npz` file.

Drawn: argument i comes from `numpy.random.default_rng([seed, i])`, so it is the same on every rank and for every
number of ranks; floats are normal with scale 0.02, integers uniform in 0…7, booleans uniform.  Of an argument marked
`alpa.nonnegative` (the program takes its root or logarithm, as Adam does) the magnitude is drawn.

In a file argument i is called `arg<i>`; for a batch that changes from step to step `arg<i>@0`, `arg<i>@1`, ….
numpy writes bfloat16 as two raw bytes, which are read back as such.  Only rank 0 reads the file.
"""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.signature import Signature
from alpa_mlir.dialect.staged import Argument
from alpa_mlir.runtime.executable import dtype_of, exact_dtype, stored
from alpa_mlir.runtime.files import written_whole
from alpa_mlir.runtime.transport.base import Array

SCALE, INTEGERS = 0.02, 8


SHORT_INTEGERS = ("int4", "uint4", "int2", "uint2")


@dataclass(frozen=True)
class Drawn:
    """Arguments from a seed, the same in every step; `first` is the run's first step."""

    arguments: tuple[Argument, ...]
    seed: int
    first: int = 0

    def value(self, number: int, step: int) -> Array | None:
        """Argument `number` whole; None in all steps but the first, as it does not change."""
        if step > self.first:
            return None
        argument = self.arguments[number]
        element = argument.type.element
        found = stored(draw(argument.type.shape, exact_dtype(element), self.seed, number), element)
        if argument.nonnegative:
            return np.asarray(np.abs(found), found.dtype)
        return found


def draw(shape: Sequence[int], dtype: np.dtype[Any], seed: int, number: int) -> Array:
    """One argument as the module's docstring says."""
    rng = np.random.default_rng([seed, number])
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if np.issubdtype(dtype, np.integer) or dtype.name in SHORT_INTEGERS:
        return rng.integers(0, INTEGERS, shape).astype(dtype)
    if np.issubdtype(dtype, np.complexfloating):
        parts = rng.standard_normal((2, *shape)) * SCALE
        return np.asarray(parts[0] + 1j * parts[1], dtype)
    drawn = rng.standard_normal(tuple(shape), np.float32) * np.float32(SCALE)
    return np.asarray(drawn).astype(dtype)


class FromFile:
    """Arguments from an `.npz` file; all names, shapes and types are checked when it is opened.

    The run's steps are `steps`; a resumed one (its first step is not 0) needs no state from here.  Raises
    `CompileError` at the file for a missing, superfluous or misshapen array.
    """

    def __init__(self, path: str, arguments: tuple[Argument, ...], steps: range) -> None:
        self._path, self._arguments, self._steps = path, arguments, steps
        try:
            if Path(path).exists() and not Path(path).is_file():
                raise self._error("cannot read the inputs: this is no file")
            self._file = np.load(path, allow_pickle=False)
        except OSError as e:
            raise self._error(f"cannot read the inputs: {e.strerror or e}") from None
        except (EOFError, ValueError, zipfile.BadZipFile):
            raise self._error("cannot read the inputs: this is no .npz file") from None
        if not isinstance(self._file, np.lib.npyio.NpzFile):
            raise self._error("the inputs must be an .npz file, not a single .npy array")
        expected = {n for i in range(len(arguments)) for n in self._names(i)}
        superfluous = [n for n in self._file.files if n not in expected and not self._is_other_batch(n)]
        if superfluous:
            raise self._error(f"{superfluous[0]} is no argument of the plan, which has arg0 … arg{len(arguments) - 1}")
        for number, argument in enumerate(arguments):
            for name in self._names(number) if steps.start == 0 or argument.role != "state" else ():
                self._read(name, number)

    def value(self, number: int, step: int) -> Array | None:
        """Argument `number` whole, or None where it is the same as in the step before."""
        names = self._names(number)
        if len(names) == 1:
            return self._read(names[0], number) if step == self._steps.start else None
        return self._read(names[step - self._steps.start], number)

    def _names(self, number: int) -> list[str]:
        """The arrays that hold an argument: one for all steps, or one for each of them."""
        if f"arg{number}@0" in self._file.files:
            return [f"arg{number}@{k}" for k in self._steps]
        return [f"arg{number}"]

    def _is_other_batch(self, name: str) -> bool:
        """A batch of a step that is not asked for is no mistake."""
        head, at, step = name.partition("@")
        return at == "@" and step.isdigit() and f"{head}@0" in self._file.files

    def _read(self, name: str, number: int) -> Array:
        kind = self._arguments[number].type
        dtype = dtype_of(kind.element)
        wanted = f"{dtype.name}{list(kind.shape)}"
        if name not in self._file.files:
            raise self._error(f"{name} is missing: the plan wants {wanted}")
        try:
            found: Array = stored(self._file[name], kind.element)
        except (ValueError, OSError, zipfile.BadZipFile) as e:
            raise self._error(f"cannot read {name}: {e}") from None
        if found.shape != kind.shape or found.dtype != dtype:
            raise self._error(f"{name} is {found.dtype.name}{list(found.shape)}, the plan wants {wanted}")
        return found

    def _error(self, message: str) -> CompileError:
        return CompileError(message, f"{self._path}:1:1")


Source = Drawn | FromFile


class InParts:
    """The arguments of `@main`, from a source of the program's (see `Signature`)."""

    def __init__(self, source: Source, signature: Signature) -> None:
        self._source, self._signature = source, signature
        self._latest: tuple[tuple[int, int], Array | None] = ((-1, -1), None)

    def value(self, number: int, step: int) -> Array | None:
        """Argument `number` of `@main`, or None where it is the same as in the step before."""
        key = (self._signature.place(number).whole, step)
        if self._latest[0] != key:
            self._latest = (key, self._source.value(*key))
        whole = self._latest[1]
        return None if whole is None else np.asarray(self._signature.part(whole, number), order="C")


def check_writable(path: str, what: str) -> None:
    """CompileError where the file could not be written at the end; nothing is changed."""
    file = Path(path)
    existed = file.exists()
    try:
        if file.is_fifo():  # to open it would wait for a reader, and to close it be the end of what that one reads
            if not os.access(file, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        with file.open("ab"):
            pass
        if not existed:
            file.unlink()
    except OSError as e:
        raise CompileError(f"cannot write the {what}: {e.strerror or e}", f"{path}:1:1") from None


def write_outputs(path: str, results: Sequence[Array]) -> None:
    """Write results as `out0`, `out1`, …: all or nothing; CompileError where the file cannot be written."""
    with written_whole(path, "outputs") as file:
        arrays: dict[str, Any] = {f"out{i}": _readable(value) for i, value in enumerate(results)}
        np.savez(file, **arrays)


def _readable(array: Array) -> Array:
    """As raw bytes where numpy would write a type that it does not read again (f8E5M2)."""
    try:
        np.dtype(array.dtype.str)
    except TypeError:
        return array.view(f"V{array.dtype.itemsize}")
    return array
