"""How tensors move between submeshes: in-process copies, MPI, NCCL, behind one small interface."""
