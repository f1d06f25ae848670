"""The decisions: module in, module out. Pure: no device, no MPI, no clock, no randomness."""
