"""From a published checkpoint to artifacts: families, parts, formats and the build."""
