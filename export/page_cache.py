"""How much of some files a build will find in memory, and how much a disk has to give."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def unread_bytes(files: Iterable[Path]) -> int:
    """Bytes of the files that are not in memory, in whole pages."""
    return sum(map(_absent_pages, files)) * mmap.PAGESIZE


def _absent_pages(path: Path) -> int:
    """Pages of a file that are not in memory; none where the system does not tell.

    Source: mincore(2); of a file that this user may not write Linux says the same.
    """
    size = path.stat().st_size
    if not size or sys.platform != "linux":
        return 0
    found = np.ones(-(-size // mmap.PAGESIZE), np.uint8)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        seen = np.frombuffer(held, np.uint8)
        place = ctypes.c_void_p(seen.ctypes.data)
        vector = found.ctypes.data_as(ctypes.POINTER(ctypes.c_ubyte))
        ctypes.CDLL(None).mincore(place, ctypes.c_size_t(size), vector)
        del seen
    return int((found & 1 == 0).sum())
