"""What `--version` prints, for every command."""

from __future__ import annotations

import argparse

import jaxlib

import alpa_mlir
from alpa_mlir.dialect.context import stablehlo


def version(name: str) -> str:
    """The command's name, our version and that of what we stand on."""
    return f"{name} {alpa_mlir.__version__} (jaxlib {jaxlib.__version__}, StableHLO {stablehlo.get_current_version()})"


def add_version(parser: argparse.ArgumentParser) -> None:
    """The option `--version`."""
    parser.add_argument("--version", action="version", version=version(parser.prog), help="print the version, and exit")
