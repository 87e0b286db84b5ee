"""Original vision towers in float32, one file per kind."""
