"""Import every pass module, so that every pass is registered."""

from __future__ import annotations

import importlib
import importlib.util

_MODULES = ("normalize", "microbatch", "layers", "stages", "shard", "localize", "split", "schedule", "check")

for _name in _MODULES:
    if importlib.util.find_spec(f"alpa_mlir.passes.{_name}") is not None:
        importlib.import_module(f"alpa_mlir.passes.{_name}")
