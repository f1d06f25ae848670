"""`python -m alpa_mlir.tools.stage_dp TABLE.npz`: the paper's stage search on a given table (docs/stages.md).

The table holds `cost` and `max_n_succ_stages` (layers × layers × submeshes × configurations), `submeshes` (a number of
devices or a shape each), `devices` and `microbatches`. Prints the cost and the partition as one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zipfile
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.passes.inter.paper_dp import training_dp
from alpa_mlir.tools.diagnostics import guarded

NAME = "stage_dp"
KEYS = ("cost", "max_n_succ_stages", "submeshes", "devices", "microbatches")


def main(argv: Sequence[str] | None = None) -> int:
    """Read a table, search, print; 1 where no partition fits."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__, allow_abbrev=False)
    parser.add_argument("table", metavar="TABLE.npz", help="the arrays named above")
    path = parser.parse_args(argv).table
    table = _read(path)
    submeshes = [int(math.prod(np.atleast_1d(shape))) for shape in table["submeshes"]]
    try:
        cost, stages = training_dp(
            int(table["devices"]), int(table["microbatches"]), submeshes, table["cost"], table["max_n_succ_stages"]
        )
    except ValueError as e:
        raise CompileError(str(e), f"{path}:1:1") from None
    if not stages:
        raise CompileError("no partition of the layers uses all devices within memory", f"{path}:1:1")
    found = [
        {"layers": [s.first, s.last], "submesh": s.submesh, "devices": submeshes[s.submesh], "config": s.config}
        for s in stages
    ]
    print(json.dumps({"cost": cost, "stages": found}))
    return 0


def _read(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [k for k in KEYS if k not in stored.files]
            if missing:
                raise CompileError(f"the table has no array {missing[0]!r}", f"{path}:1:1")
            return {k: stored[k] for k in KEYS}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as e:
        raise CompileError(f"not an .npz table: {e}", f"{path}:1:1") from None


def entry() -> NoReturn:
    """Run as a program."""
    sys.exit(guarded(NAME, main))


if __name__ == "__main__":
    entry()
