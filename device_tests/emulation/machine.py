"""One emulated machine: system files with that CPU's engines, ready to run Python."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mllm_export.device_tests.emulation.cache import entry, require_tools
from mllm_export.device_tests.emulation.cpu import Cpu
from mllm_export.device_tests.emulation.llama import llama_libraries, llama_source, llama_version
from mllm_export.device_tests.emulation.sysroot import PACKAGES_FOLDER, PYTHON, sysroot
from mllm_export.progress import Progress, Step
from mllm_export.records import record

TOOLS = ("mmdebstrap", "cmake", "ninja", "aarch64-linux-gnu-g++", "gcc", "qemu-aarch64")
"""What setting up and running calls."""


@record
class Machine:
    """A system folder and the CPU that its /proc/cpuinfo tells of."""

    cpu: Cpu
    root: Path

    def python(self) -> tuple[str, ...]:
        """The command that starts Python in it, without plugins."""
        return ("qemu-aarch64", "-cpu", self.cpu.qemu, "-L", str(self.root), self.interpreter)

    @property
    def interpreter(self) -> str:
        """Python inside the system folder, as this machine sees it."""
        return str(self.root / f"usr/bin/python{PYTHON}")


def set_up(cpu: Cpu, progress: Progress, libraries: Cpu | None = None) -> Machine:
    """The machine of a CPU, made at the first call; `libraries` of another CPU if asked for.

    Raises: DeviceError when a tool is missing, a download or a compilation fails.
    """
    require_tools(TOOLS)
    parts = (
        ("system files", sysroot),
        ("llama.cpp", lambda: llama_libraries(libraries or cpu)),
    )
    made: list[Path] = []
    for done, (what, make) in enumerate(parts):
        item = f"{what} for {cpu.name}"
        progress(Step(stage="set up", item=item, done=done, total=len(parts), unit="parts"))
        made.append(make())
    system, engines = made
    made_of = {
        "system": system.name,
        "engines": engines.name,
        "cpu": cpu.cpuinfo(os.cpu_count() or 1),
        "binding": llama_version(),
    }
    name = f"machine-{cpu.name}"
    root = entry(name, made_of, lambda folder: _assemble(folder, cpu, system, engines)) / "root"
    progress(Step(stage="set up", item=cpu.name, done=len(parts), total=len(parts), unit="parts"))
    return Machine(cpu=cpu, root=root)


def _assemble(folder: Path, cpu: Cpu, system: Path, engines: Path) -> None:
    """Files that no CPU changes are links to the shared ones: a machine costs few megabytes."""
    root = folder / "root"
    shutil.copytree(system / "root", root, symlinks=True, copy_function=_link)
    binding = root / PACKAGES_FOLDER / "llama_cpp"
    shutil.copytree(
        llama_source() / "llama_cpp", binding, ignore=shutil.ignore_patterns("lib", "server")
    )
    shutil.copytree(engines, binding / "lib", symlinks=True)
    (root / "proc" / "cpuinfo").write_text(cpu.cpuinfo(os.cpu_count() or 1), encoding="ascii")


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)
