"""Palettes of 64 values."""

from __future__ import annotations

from mllm_export.export.coreml_schemes._palette import Palette

SCHEME = Palette(6)
