"""Cluster presets (`*.toml`): devices, links and speeds, read by `alpa_mlir.cluster_file`."""
