"""One file per decoder architecture."""
