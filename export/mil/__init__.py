"""What the operations of an ML Program compute, one file per group."""
