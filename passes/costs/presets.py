"""Cluster presets: the TOML files of the data folder `alpa_mlir.clusters`, the only files that passes read."""

from importlib.resources import files

FOLDER = "alpa_mlir.clusters"


def preset_names() -> tuple[str, ...]:
    """Names of all presets, sorted."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in files(FOLDER).iterdir() if f.name.endswith(".toml")))


def preset_text(name: str) -> str:
    """The TOML text of one preset; KeyError where there is none of that name."""
    if name not in preset_names():
        raise KeyError(name)
    return (files(FOLDER) / f"{name}.toml").read_text(encoding="utf-8")
