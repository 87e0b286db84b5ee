"""TOML files of ours, read with one error type."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mllm_export.errors import MllmExportError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path | Traversable, error: type[MllmExportError]) -> dict[str, Any]:
    """The file's tables.

    Raises: `error` naming the file when it is missing, not UTF-8 as TOML has to be, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise error(f"{path}: not valid TOML ({failure})") from failure
