"""Cluster presets (`*.toml`): devices, links and speeds; the keys are explained in docs/clusters.md."""

from importlib.resources import files


def preset_names() -> tuple[str, ...]:
    """Names of all presets, sorted."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in files(__package__).iterdir() if f.name.endswith(".toml")))


def preset_text(name: str) -> str:
    """The TOML text of one preset; KeyError where there is none of that name."""
    if name not in preset_names():
        raise KeyError(name)
    return (files(__package__) / f"{name}.toml").read_text(encoding="utf-8")
