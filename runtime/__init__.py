"""The execution: plan in, tensors out. Knows PJRT and MPI; knows no solver and no cost model."""
