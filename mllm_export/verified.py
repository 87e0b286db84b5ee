"""Files whose SHA-256 was compared on this machine, remembered so that it need not be again.

    5f0c... 64768 1311 784201344 1764310361204116201 1764310361204116201 9a31...

A line stands for a file as it was: the boot, device, inode, size, times of change, and the
SHA-256 it had. The kernel sets the last of the times, ctime, at every change of a file's bytes,
and no program can set it back; so whoever changes bytes and restores the rest is still seen.
Source: git, Documentation/technical/racy-git.txt; Linux, Documentation/filesystems/multigrain-ts.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from mllm_export.caches import cache_folder, read_own, write_own
from mllm_export.errors import BundleError
from mllm_export.hashing import has_sha256

VARIABLE = "MLLM_VERIFY"
"""`always`: nothing is remembered."""

_RECORD = "verified"
_MOST_LINES = 64
_MOST_BYTES = 1 << 16
_ADDING = threading.Lock()
_SETTLED_S = 60
"""Younger changes are not remembered: a later one could bear the same time, and what a program
writes through a mapping moves the times only once the kernel has written it back, every 35 s.
Source: proc_sys_vm(5), dirty_expire_centisecs and dirty_writeback_centisecs."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_KEEP_TIMES = {0xEF53, 0x58465342, 0x9123683E, 0xF2F52010}
"""ext2 to ext4, XFS, Btrfs, F2FS: their times move with every change, through a mapping too. On
tmpfs they do not, on FAT ctime can be set, and a network's are another machine's.
Source: linux, include/uapi/linux/magic.h; mm/shmem.c has no page_mkwrite."""


def holds(path: Path, sha256: str) -> bool:
    """Whether a file has that SHA-256: as remembered of this very file, or as computed now.

    Where the cache folder cannot be read or written, on other systems than Linux and on other
    file systems than those named here, it is computed every time.

    Raises: BundleError for a value of MLLM_VERIFY that is none.
    """
    begun_s = time.time()
    seen = None if _always() else _sight(path, sha256)
    if seen is not None and seen in _lines():
        return True
    held = has_sha256(path, sha256)
    if held and seen is not None and _settled(path, begun_s) and _sight(path, sha256) == seen:
        # RuntimeError: a user without a home.
        with suppress(OSError, RuntimeError):
            _remember(seen)
    return held


def _always() -> bool:
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "always"):
        raise BundleError(f"{VARIABLE} is '{value}', known: always")
    return value == "always"


def _sight(path: Path, sha256: str) -> str | None:
    """The line of a file as it is now; None where its times prove nothing."""
    if sys.platform != "linux" or _file_system(path) not in _KEEP_TIMES:
        return None
    try:
        # What a disk held may have been changed elsewhere before it was mounted again.
        boot = _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return None
    now = path.stat()
    numbers = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    return " ".join((boot, *map(str, numbers), sha256))


def _file_system(path: Path) -> int:
    """The magic number of what holds a file; 0 where the system does not tell.

    Source: statfs(2): f_type is the first field, a long or narrower.
    """
    found = (ctypes.c_long * 64)()
    if ctypes.CDLL(None).statfs(os.fsencode(path), found):
        return 0
    return found[0] & 0xFFFFFFFF


def _settled(path: Path, now_s: float) -> bool:
    found = path.stat()
    return now_s - max(found.st_mtime, found.st_ctime) > _SETTLED_S


def _lines() -> list[str]:
    """What is remembered; nothing that another user could have written."""
    try:
        found = read_own(cache_folder() / _RECORD, _MOST_BYTES)
    # RuntimeError: a user without a home.
    except (OSError, RuntimeError):
        return []
    return found.decode("ascii", "backslashreplace").splitlines()


def _remember(line: str) -> None:
    """Add a line. One that another process adds at the same time may be lost: it costs a hash.

    One load's engines open side by side, and none may lose another's line at every start.
    """
    with _ADDING:
        lines = [*_lines(), line][-_MOST_LINES:]
        write_own(cache_folder() / _RECORD, ("\n".join(lines) + "\n").encode("ascii"))
