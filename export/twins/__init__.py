"""Checkpoints that this package trains: one file for each."""
