"""One file per vision encoder."""
