"""The folder where what is slow to make is kept: each entry made whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mllm_export.caches import cache_folder
from mllm_export.errors import DeviceError

_TAIL_LINES = 12


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Wait until no other process here does this; a process that dies gives it back."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    with (folder / name).open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def entry(kind: str, made_of: Mapping[str, str], make: Callable[[Path], None]) -> Path:
    """The folder of this kind made of these things; `make` fills it when it is not there.

    A run that is cut leaves only a folder with another name, which the next run removes.
    """
    words = "\n".join(f"{name}={value}" for name, value in sorted(made_of.items()))
    key = hashlib.sha256(words.encode()).hexdigest()[:12]
    whole = cache_folder() / f"{kind}-{key}"
    if whole.is_dir():
        return whole
    with alone(str(whole)):
        if whole.is_dir():  # another process made it meanwhile
            return whole
        partial = whole.with_name(f".{whole.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        (partial / "made-of.txt").write_text(words + "\n", encoding="utf-8")
        partial.rename(whole)
    return whole


def run_tool(command: Sequence[str | Path], what: str, cwd: Path | None = None) -> None:
    """Run a tool to its end.

    Raises: DeviceError with the last lines it printed, or naming the package that brings it.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except FileNotFoundError:
        raise DeviceError(f"{what}: '{words[0]}' is not installed; {_INSTALL}") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-_TAIL_LINES:])
        raise DeviceError(f"{what} failed ({words[0]} ended with {done.returncode}):\n{tail}")


def require_tools(tools: Sequence[str]) -> None:
    """Raise DeviceError naming every tool that is not installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise DeviceError(f"not installed: {', '.join(missing)}; {_INSTALL}")


PACKAGES = (
    "qemu-user",
    "qemu-user-static",
    "gcc",
    "g++-aarch64-linux-gnu",
    "mmdebstrap",
    "ninja-build",
    "cmake",
)
"""Debian's packages with every tool that is called here."""

_INSTALL = f"on Debian 12: apt-get install {' '.join(PACKAGES)}"
