"""What things cost on a cluster: seconds of compute and communication, bytes of memory."""
