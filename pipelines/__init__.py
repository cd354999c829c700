"""The host side: files -> Example -> Prepared -> HostBatch, NumPy only, never a jax array."""
