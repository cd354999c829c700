"""GLIPv2 in JAX: the library, everything that happens after a batch (the way of the data is in README.md)."""

__version__ = "0.1.0"
