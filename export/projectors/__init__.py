"""One file per projector."""
