"""The two training loops, the update, checkpoints, metrics and run folders."""
