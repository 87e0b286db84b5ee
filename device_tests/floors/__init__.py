"""Measured noise floors, one file a model; written by device_tests.noise_floor."""
