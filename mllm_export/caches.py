"""This user's caches: where they are, and files in them that nobody else wrote."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def cache_folder() -> Path:
    """`MLLM_EXPORT_CACHE`, or the user's cache folder. Source: XDG Base Directory, 0.8.

    Raises: RuntimeError for a user without a home.
    """
    named = os.environ.get("MLLM_EXPORT_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "mllm-export"


def read_own(path: Path, most_bytes: int = -1) -> bytes:
    """A cached file; empty where another user could have written it.

    Raises: OSError where there is none, or a link, or on a system without owners.
    """
    if not hasattr(os, "geteuid"):
        raise OSError(f"{path}: this system does not say whose it is")
    # Opening a pipe would wait for who writes into it.
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(file, "rb") as opened:
        found = os.fstat(file)
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        if not ours or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return b""
        return opened.read(most_bytes)


def write_own(path: Path, data: bytes) -> None:
    """A cached file, whole or not at all; only this user can read it.

    Raises: OSError.
    """
    import tempfile  # slow to import, and few runs write

    _make_own(path.parent)
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(number, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _make_own(folder: Path) -> None:
    """A folder that only this user can read, within others of the kind."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
