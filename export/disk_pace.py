"""What a build must fetch from a disk, and how fast the disks here give and take."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mllm_export.records import record

_BLOCK_BYTES = 4 << 20
_READ_BLOCKS = 16
_STEP_BYTES = 1 << 20
_WRITTEN_STEPS = 16
_ENOUGH_SECONDS = 0.3


@record
class DiskPace:
    """The sources as they are now, and the disks that hold them and the bundle."""

    source_bytes: int
    unread_bytes: int
    """Of the sources, what is not in memory."""
    read_bytes: float
    """A second, of what is not in memory; infinite where everything is."""
    written_bytes: float
    """A second, until they are on the disk; infinite where nothing can be written."""


def measure_disks(sources: Iterable[Path], parent: Path) -> DiskPace:
    """A few blocks of the sources are read, and a file is written and removed.

    A fraction of a second, but where a disk takes longer for a MiB.
    """
    absent = {path: _absent_pages(path) for path in sources}
    unread = sum(int(pages.sum()) for pages in absent.values()) * mmap.PAGESIZE
    return DiskPace(
        source_bytes=sum(path.stat().st_size for path in absent),
        unread_bytes=unread,
        read_bytes=_read_pace(absent) if unread else float("inf"),
        written_bytes=_write_pace(parent),
    )


def _absent_pages(path: Path) -> npt.NDArray[np.bool_]:
    """Whether each page of a file is not in memory; none where the system does not tell.

    Source: mincore(2); of a file that this user may not write Linux says the same.
    """
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    found = np.ones(pages, np.uint8)
    if size and sys.platform == "linux":
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            seen = np.frombuffer(held, np.uint8)
            place = ctypes.c_void_p(seen.ctypes.data)
            vector = found.ctypes.data_as(ctypes.POINTER(ctypes.c_ubyte))
            ctypes.CDLL(None).mincore(place, ctypes.c_size_t(size), vector)
            del seen
    absent: npt.NDArray[np.bool_] = found & 1 == 0
    return absent


def _read_pace(absent: dict[Path, npt.NDArray[np.bool_]]) -> float:
    read, started = 0, time.perf_counter()
    for path, at in _spread(absent):
        with path.open("rb", buffering=0) as file:
            for step in range(at, at + _BLOCK_BYTES, _STEP_BYTES):
                file.seek(step)
                read += len(file.read(_STEP_BYTES))
                if time.perf_counter() - started > _ENOUGH_SECONDS:
                    return read / (time.perf_counter() - started)
    # Nothing, where only a few pages here and there are not in memory.
    return read / (time.perf_counter() - started) if read else float("inf")


def _spread(absent: dict[Path, npt.NDArray[np.bool_]]) -> Sequence[tuple[Path, int]]:
    """Some blocks that are not in memory, from all over the files."""
    step = _BLOCK_BYTES // mmap.PAGESIZE
    blocks = [
        (path, int(number) * _BLOCK_BYTES)
        for path, pages in absent.items()
        for number in np.flatnonzero(pages[::step])
    ]
    return blocks[:: -(-len(blocks) // _READ_BLOCKS) or 1]


def _write_pace(parent: Path) -> float:
    """Of a file in a folder, or in the first above it that there is."""
    some, written = os.urandom(_STEP_BYTES), 0
    try:
        above = (parent.absolute(), *parent.absolute().parents)
        with tempfile.TemporaryFile(dir=next(one for one in above if one.is_dir())) as file:
            started = time.perf_counter()
            while written < _WRITTEN_STEPS and time.perf_counter() - started < _ENOUGH_SECONDS:
                file.write(some)
                written += 1
            file.flush()
            os.fsync(file.fileno())
            return written * _STEP_BYTES / (time.perf_counter() - started)
    except OSError:
        return float("inf")
