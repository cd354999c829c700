"""Names and layouts shared with PyTorch checkpoints."""
