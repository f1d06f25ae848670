"""Import every pass module, so that every pass is registered."""

from __future__ import annotations

import contextlib
import importlib

_MODULES = ("normalize", "microbatch", "layers", "stages", "shard", "localize", "split", "schedule", "check")

for _name in _MODULES:
    with contextlib.suppress(ImportError):
        importlib.import_module(f"alpa_mlir.passes.{_name}")
