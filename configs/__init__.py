"""ml_collections configuration files, few and complete: one `get_config(arg)` each."""
