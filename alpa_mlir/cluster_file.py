"""Clusters as users name them: a preset, or a TOML file of their own."""

from __future__ import annotations

from alpa_mlir.dialect.diagnostics import CompileError
from alpa_mlir.dialect.reading import read_text
from alpa_mlir.passes.costs.cluster import Cluster, load_cluster, parse_cluster
from alpa_mlir.passes.costs.presets import preset_names


def read_cluster(name: str) -> Cluster:
    """The preset of that name, else the cluster in that file.

    Raises `CompileError`, located in the file, where it cannot be read or is no cluster.
    """
    if name in preset_names():
        return load_cluster(name)
    try:
        text = read_text(name)
    except CompileError as e:
        presets = ", ".join(preset_names())
        why = e.message.partition(": ")[2]
        raise CompileError(f"neither a preset ({presets}) nor a readable file: {why}", e.location) from None
    return parse_cluster(text, name)
