"""The commands `alpa-mlir-*`: argument parsing and printing only, the work is done by the wings."""
