"""One file per decoder engine."""
