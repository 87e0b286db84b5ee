"""One TOML file per device."""
