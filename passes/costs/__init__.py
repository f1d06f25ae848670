"""What things cost: seconds of compute and communication, bytes of memory. Rules are numbered in docs/costs.md."""
