"""Rewrites of a graph to ONNX Runtime's own operators, a file each."""
