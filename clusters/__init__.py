"""Cluster presets (`*.toml`): devices, links and speeds; the keys are explained in docs/clusters.md. Data, no code."""
