"""One file per storage layout."""
