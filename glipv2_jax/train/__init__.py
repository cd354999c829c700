"""State, optimizer, jitted step, loop, metrics and checkpoints."""
