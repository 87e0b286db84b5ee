"""Published layouts of an encoder alone: one file each."""
