"""Which part is to blame: parts swapped one at a time, then the layers of the worst."""
