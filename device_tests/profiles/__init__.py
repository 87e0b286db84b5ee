"""One TOML file per set of limits."""
