"""arm64 programs that start others: the kernel hands them to qemu while this holds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mllm_export.errors import DeviceError

_FOLDER = Path("/proc/sys/fs/binfmt_misc")
_NAME = "mllm-export-arm64"
_MAGIC = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00"
_MASK = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff"
"""A 64-bit little-endian ELF file, executable or shared, for AArch64 (183).

Source: System V ABI, ELF header; qemu, scripts/qemu-binfmt-conf.sh.
"""


@contextmanager
def arm64_programs() -> Iterator[None]:
    """Register qemu for arm64 files, and take that back at the end.

    The interpreter is opened when it is registered (flag F), so that it serves in a chroot too.

    Raises: DeviceError without root, or without qemu-user-static.
    """
    if os.geteuid() != 0:
        raise DeviceError("playing a device needs root, to chroot and to register qemu")
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        raise DeviceError(
            "'qemu-aarch64-static' is not installed: apt-get install qemu-user-static"
        )
    if not (_FOLDER / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "none", str(_FOLDER)], check=True)
    entry = _FOLDER / f"{_NAME}-{os.getpid()}"
    line = f":{entry.name}:M::{_escape(_MAGIC)}:{_escape(_MASK)}:{emulator}:F"
    (_FOLDER / "register").write_text(line, encoding="ascii")
    try:
        yield
    finally:
        entry.write_text("-1", encoding="ascii")


def _escape(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)
