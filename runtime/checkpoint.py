"""Checkpoints: the state of a run on disk, written by all ranks together, read back onto any plan.

A checkpoint is an ordinary orbax checkpoint (`DIR/12` after twelve steps), which any orbax program reads: item
`state` is a tree with one array for each state argument, `arg5` for argument 5; item `run` says where the run stands.
Each array is a zarr of the *global* shape whose chunks, with checksums, are the tiles of the plan's sharding.  So every
rank writes its own tiles, each tile is written once however many devices hold it, and a rank of any other plan reads
the boxes it needs, whatever tiles they were written as.

orbax's own way for several processes wants one job of jax with all of them.  Ours are several jobs (see `layout`), that
must not wait for one another; so ranks write tiles with tensorstore, the library beneath orbax, into a folder beside
the checkpoint, and rank 0 lets orbax adopt the finished arrays and commit: it writes the tree's description and
renames the whole.  A run that is killed meanwhile leaves the checkpoints before as they were.  `DIR` must lie on a file
system that all hosts share.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import zip_longest
from math import gcd
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.plan import Plan
from alpa_mlir.dialect.signature import Signature
from alpa_mlir.dialect.staged import Argument, PlanMain
from alpa_mlir.dialect.tiles import Box
from alpa_mlir.runtime.executable import dtype_of
from alpa_mlir.runtime.position import Position
from alpa_mlir.runtime.transport.base import Array

STATE, RUN = "state", "run"
_STAGING = ".writing-"
_CODECS = ({"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"})


@dataclass(frozen=True)
class _Written:
    """An array that stands complete in a folder of its own."""

    path: Path


class _Adopting(ocp.type_handlers.TypeHandler):  # type: ignore[misc]
    """Tells orbax how to save an array that has been written already: take its folder."""

    def typestr(self) -> str:
        return "np.ndarray"

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError("only for saving")

    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> Sequence[Any]:
        raise NotImplementedError("only for saving")

    async def serialize(
        self, values: Sequence[_Written], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            os.rename(value.path, info.path)
        return []


class Directory:
    """A folder of checkpoints, as rank 0 writes them; `keep` is how many stay, 0: all.

    Raises `CompileError` where it cannot be written.
    """

    def __init__(self, path: str, keep: int = 0) -> None:
        self.path = Path(path).absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for stale in self.path.glob(f"{_STAGING}*"):
                shutil.rmtree(stale)
            probe = self.path / f"{_STAGING}probe"
            probe.mkdir()
            probe.rmdir()
        except OSError as e:
            raise CompileError(f"cannot write checkpoints: {e.strerror or e}", f"{path}:1:1") from None
        self._manager = _manager(self.path, keep)

    def begin(self, plan: Plan, step: int) -> Path:
        """The folder into which all ranks write the tiles of `step`: the arrays stand there, empty."""
        staging = self.path / f"{_STAGING}{step}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        signature = Signature(plan.main)
        for number in state_arguments(signature.arguments):
            kind = signature.arguments[number].type
            parts = [plan.main.arguments[n].type for n in signature.given[number].parts]
            tiles = [t.sharding.local_shape(t.shape, plan.stages[t.mesh].mesh) for t in parts]
            chunk = [max(1, gcd(*extents)) for extents in zip(*tiles, strict=True)]
            grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
            described = {
                "shape": list(kind.shape),
                "data_type": dtype_of(kind.element).name,
                "chunk_grid": grid,
                "codecs": list(_CODECS),
            }
            try:
                ts.open({**_spec(staging, number), "metadata": described}, create=True).result()
            except ValueError as e:
                if "not one of the supported data types" not in str(e):
                    raise
                raise CompileError(f"a checkpoint cannot hold argument {number}, {kind.tensor_text}") from None
        return staging

    def commit(self, staging: Path, plan: Plan, position: Position) -> Path:
        """Make a checkpoint of the written arrays; the path of it."""
        arguments = Signature(plan.main).arguments
        tree = {_name(i): _Written(staging / _name(i)) for i in state_arguments(arguments)}
        told = {**asdict(position), "arguments": _described(plan.main)}
        if position.step in self._manager.all_steps():
            self._manager.delete(position.step)
        items = {STATE: ocp.args.PyTreeSave(tree), RUN: ocp.args.JsonSave(told)}
        self._manager.save(position.step, args=ocp.args.Composite(**items), force=True)
        shutil.rmtree(staging)
        return self.path / str(position.step)


@contextmanager
def writing(path: str, step: int) -> Iterator[None]:
    """The body writes a part of the checkpoint of `step` in `path`: where it cannot, what is half written goes, and
    CompileError says why."""
    try:
        yield
    except (OSError, ValueError) as e:
        shutil.rmtree(Path(path).absolute() / f"{_STAGING}{step}", ignore_errors=True)
        raise CompileError(f"cannot write checkpoint {step}: {_reason(e)}", f"{path}:1:1") from None


def find(path: str, main: PlanMain) -> tuple[Path, Position]:
    """The latest checkpoint in a folder, or the one that `path` itself is, and where its run stood.

    Raises `CompileError` where there is none, or where it is one of another program.
    """
    whole = Path(path).absolute()
    if not whole.is_dir():
        raise CompileError("there is no such folder of checkpoints", f"{path}:1:1")
    if whole.name.isdigit() and (whole / STATE).is_dir():
        root, step = whole.parent, int(whole.name)
    else:
        latest = _manager(whole, 0).latest_step()
        if latest is None:
            raise CompileError("there is no checkpoint in this folder", f"{path}:1:1")
        root, step = whole, latest
    try:
        restored = _manager(root, 0).restore(step, args=ocp.args.Composite(**{RUN: ocp.args.JsonRestore()}))
        told = dict(restored[RUN])
        there = told.pop("arguments")
        position = Position(**told)
    except (OSError, ValueError, KeyError, TypeError):
        raise CompileError("this is no checkpoint that alpa-mlir-run has written", f"{path}:1:1") from None
    for here, old in zip_longest(_described(main), there):
        if here != old:
            raise CompileError(
                f"a checkpoint of another program: it has {_text(old)} where the plan has {_text(here)}", f"{path}:1:1"
            )
    return root / str(step) / STATE, position


def state_arguments(arguments: Sequence[Argument]) -> tuple[int, ...]:
    """The numbers of those that a checkpoint holds."""
    return tuple(i for i, a in enumerate(arguments) if a.role == "state")


def write(folder: Path, number: int, box: Box, tile: Array) -> Any:
    """Begin to write a box of an array; a future.  `tile` must not change before it is done."""
    return _open(folder, number)[_slices(box)].write(tile)


def read(folder: Path, number: int, box: Box) -> Array:
    """A box of an array; CompileError where it is damaged."""
    array = _open(folder, number)
    try:
        found: Array = np.asarray(array[_slices(box)].read().result())
    except (OSError, ValueError) as e:
        raise CompileError(f"cannot read {_name(number)} of the checkpoint: {_reason(e)}", f"{folder}:1:1") from None
    return found


def _manager(root: Path, keep: int) -> ocp.CheckpointManager:
    """orbax's manager of a folder, for this process alone."""
    # What orbax misses when several processes write is not its business here.
    logging.getLogger("absl").setLevel(logging.ERROR)
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix="alpa")
    registry = ocp.type_handlers.create_type_handler_registry((_Written, _Adopting()))
    handlers = {
        STATE: ocp.PyTreeCheckpointHandler(
            use_ocdbt=False, use_zarr3=True, type_handler_registry=registry, multiprocessing_options=alone
        ),
        RUN: ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    }
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep or None, create=False, enable_async_checkpointing=False, multiprocessing_options=alone
    )
    return ocp.CheckpointManager(root, item_names=tuple(handlers), item_handlers=handlers, options=options)


def _open(folder: Path, number: int) -> Any:
    try:
        return ts.open(_spec(folder, number), open=True).result()
    except (OSError, ValueError) as e:
        raise CompileError(
            f"cannot open {_name(number)} of the checkpoint: {_reason(e)}; all hosts must see this folder",
            f"{folder}:1:1",
        ) from None


def _spec(folder: Path, number: int) -> dict[str, Any]:
    # A chunk that is missing would be read as zeros, so chunks of zeros are written too.
    whole = {"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / _name(number))}, **whole}


def _reason(error: OSError | ValueError) -> str:
    """What went wrong, without tensorstore's spec of the array."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    full = os.strerror(errno.ENOSPC)
    return full if full in text else text.partition("[")[0].strip()


def _name(number: int) -> str:
    return f"arg{number}"


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in box)


def _described(main: PlanMain) -> list[dict[str, Any]]:
    """What tells a program's state from another's: numbers, names, shapes and types of its own arguments."""
    found, signature = [], Signature(main)
    for number in state_arguments(signature.arguments):
        argument = signature.arguments[number]
        name = signature.names[argument.updates] if argument.updates is not None else ""
        kind = argument.type
        found.append({"number": number, "name": name, "shape": list(kind.shape), "element": kind.element})
    return found


def _text(argument: dict[str, Any] | None) -> str:
    """An argument in a message."""
    if argument is None:
        return "nothing"
    shape = "".join(f"{n}x" for n in argument["shape"])
    name = f" ({argument['name']})" if argument["name"] else ""
    return f"argument {argument['number']}{name}: tensor<{shape}{argument['element']}>"
