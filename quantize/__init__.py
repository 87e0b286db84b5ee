"""Schemes, recipes and storage layouts."""
