"""What the checks know of a vision engine's file, one file per engine in runtimes/vision."""
