"""What a bundle is made of: one file per format an artifact can have."""
