"""Programs: `glipv2 train|evaluate|predict` and `python -m launch.train` are the same code."""
