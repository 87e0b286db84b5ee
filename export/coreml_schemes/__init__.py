"""How Core ML can store a weight, one file per scheme; float16 needs none."""
