"""Benchmarks: `python -m benchmarks.NAME` prints JSON; nothing here is imported by the library."""
