"""Checks of a bundle: the parity ladder."""
