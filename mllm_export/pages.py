"""Memory of this process: its peak, and what goes back to the system."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

_MADV_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_MAPS = Path("/proc/self/maps")
_STATUS = Path("/proc/self/status")
_WEIGHT_FILES = (".bin", ".gguf", ".onnx", ".pt", ".safetensors")


def peak_bytes() -> int:
    """Largest resident set of this program, without what the one that started it held.

    Source: proc(5), VmHWM; getrusage(2) where there is none.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    import resource

    return _told_bytes(resource.RUSAGE_SELF)


def family_peak_bytes() -> int:
    """Largest resident set that this process or one that it started and that ended ever held."""
    import resource

    return max(peak_bytes(), _told_bytes(resource.RUSAGE_CHILDREN))


def _told_bytes(who: int) -> int:
    """Source: getrusage(2), ru_maxrss: kilobytes on Linux, bytes on macOS."""
    import resource

    peak = int(resource.getrusage(who).ru_maxrss)
    return peak if sys.platform == "darwin" else peak << 10


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


def forget_weight_files() -> None:
    """Drop the pages of every mapped file of weights, in a process that never writes to one.

    Not for somebody else's process: what it changed in a private mapping would be undone.
    Does nothing where the system does not list its mappings (other than Linux).
    """
    _forget_mapped(_WEIGHT_FILES)


def forget_file(path: Path) -> None:
    """The same for one file, that no part of the process writes to."""
    _forget_mapped((f" {path.resolve()}",))


def _forget_mapped(endings: tuple[str, ...]) -> None:
    if _MAPS.exists():
        for start, stop in _mapped(_MAPS.read_text(errors="replace"), endings):
            forget_pages(start, stop - start)


def _mapped(maps: str, endings: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Address ranges of files by the ends of their paths. Source: proc(5), /proc/pid/maps."""
    for line in maps.splitlines():
        if line.endswith(endings):
            start, stop = line.split(maxsplit=1)[0].split("-")
            yield int(start, 16), int(stop, 16)


def trim_heap() -> None:
    """Ask the C library to give freed memory back; does nothing where it has no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
