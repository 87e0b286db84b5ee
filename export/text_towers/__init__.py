"""One file per text tower."""
