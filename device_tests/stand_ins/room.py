"""A system folder to live in: the emulated machine's files, a home of its own, and a /proc."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mllm_export.caches import cache_folder
from mllm_export.device_tests.emulation.machine import Machine
from mllm_export.device_tests.stand_ins.binfmt import arm64_programs
from mllm_export.records import record


@record
class Room:
    """A chroot in which everything is arm64."""

    root: Path
    qemu_cpu: str

    def command(self, line: str) -> list[str]:
        """The words that run a line of the machine's shell, from root's home."""
        settings = ("HOME=/root", "PATH=/usr/local/bin:/usr/bin:/bin", f"QEMU_CPU={self.qemu_cpu}")
        return [
            *("chroot", str(self.root), "/usr/bin/env", "-i", *settings),
            *("/bin/sh", "-c", f"cd; {line}"),
        ]

    def script(self, variable: str) -> str:
        """The same as a line of this machine's shell, with the line in a variable."""
        words = self.command("")
        return f'exec {shlex.join(words[:-1])} "cd; ${variable}"'


@contextmanager
def room(machine: Machine) -> Iterator[Room]:
    """Files are links to the machine's, so that a room costs no space; gone at the end.

    Raises: DeviceError where this needs rights that are not given.
    """
    with ExitStack() as ending:
        ending.enter_context(arm64_programs())
        folder = Path(tempfile.mkdtemp(prefix="room-", dir=cache_folder()))
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        root = folder / "root"
        _run("cp", "-al", machine.root, root)
        cpuinfo = folder / "cpuinfo"
        (root / "proc" / "cpuinfo").rename(cpuinfo)
        _mount(ending, root / "proc", "-t", "proc", "proc")
        _mount(ending, root / "proc" / "cpuinfo", "--bind", cpuinfo)
        yield Room(root=root, qemu_cpu=machine.cpu.qemu)


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[None]:
    """A file system of that size over a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as ending:
        _mount(ending, folder, "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs")
        yield


def _mount(ending: ExitStack, where: Path, *words: str | Path) -> None:
    _run("mount", *words, where)
    # Lazily: a runner that was killed may still hold a file.
    ending.callback(_run, "umount", "-l", where)


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
