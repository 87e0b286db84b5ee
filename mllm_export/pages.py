"""Give the memory of a mapped file back while the mapping stays."""

from __future__ import annotations

import ctypes
import mmap
import sys

_MADV_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)


def forget_pages(address: int, size_bytes: int) -> None:
    """Drop a range's pages from this process; the next access reads them from the file again.

    Only for memory that maps a file and was never written to. Does nothing where the system has
    no madvise.
    """
    if _MADV_DONTNEED is None or sys.platform == "win32":
        return
    # Whole pages inside the range: its first and last may hold a neighbour's bytes.
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (address + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)
