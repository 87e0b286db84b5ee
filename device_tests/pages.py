"""Give file-backed memory back: a mapped checkpoint must not count as this process's own."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy.typing as npt

_MADV_PAGEOUT = 21
"""Source: Linux, include/uapi/asm-generic/mman-common.h; since Linux 5.4."""


def drop_pages(values: npt.NDArray[Any]) -> None:
    """Ask the kernel to take the pages of a contiguous view out of memory.

    A hint that never changes contents: pages of a file are read again, others stay.
    Does nothing where the system has no such call.
    """
    flags = values.flags
    if not sys.platform.startswith("linux") or flags.owndata or not flags.forc:
        return
    start = values.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = values.ctypes.data + values.nbytes - start
    libc = ctypes.CDLL(None)
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_PAGEOUT)
