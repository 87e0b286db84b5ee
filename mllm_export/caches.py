"""Where this user's caches are."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`MLLM_EXPORT_CACHE`, or the user's cache folder. Source: XDG Base Directory, 0.8."""
    named = os.environ.get("MLLM_EXPORT_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "mllm-export"
