"""One file per artifact format."""
