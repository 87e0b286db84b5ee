"""One file per vision engine."""
