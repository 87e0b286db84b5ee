"""One file per family: the original in float32 through PyTorch."""
