"""The reference checkpoint: a small MobileVLM V2 that this package trains, and its files."""
