"""An arm64 machine in a folder: system files, engines per CPU, and a counter of instructions."""
