"""An arm64 CPU played by qemu's user emulation: true parity, meaningless time."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import replace
from pathlib import Path

from mllm_export.caches import cache_folder
from mllm_export.device_tests.device import Completed, Settings
from mllm_export.device_tests.devices.local import LocalLink
from mllm_export.device_tests.emulation.counter import counter_library
from mllm_export.device_tests.emulation.cpu import cpu_names, load_cpu
from mllm_export.device_tests.emulation.machine import Machine, set_up
from mllm_export.errors import DeviceError
from mllm_export.progress import Progress

_LIBRARIES = "?libraries="


class QemuLink(LocalLink):
    """Python runs in the emulator; files lie on this machine."""

    emulated = True

    def __init__(self, machine: Machine, settings: Settings) -> None:
        """Nothing runs yet."""
        home = settings.home or str(cache_folder() / f"device-{machine.cpu.name}")
        super().__init__(replace(settings, home=home))
        self.title = f"qemu:{machine.cpu.qemu}"
        self.python = settings.python or shlex.join(machine.python())
        self.counter = self._counted

    def _counted(self, command: str, timeout_s: float) -> tuple[Completed, str]:
        """The emulator with its counting plugin; the counts are lines of JSON."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "counts.jsonl"
            plain = self.python
            plugin = f"-plugin {shlex.quote(str(counter_library()))},out={shlex.quote(str(out))}"
            emulator, _, rest = plain.partition(" ")
            # A hash seed and addresses of their own for each run would move the counts.
            steady = f"PYTHONHASHSEED=0 setarch -R {emulator} {plugin} {rest}"
            done = self.shell(command.replace(plain, steady, 1), timeout_s)
            return done, out.read_text(encoding="ascii") if out.is_file() else ""


class Qemu:
    """`qemu:CPU`."""

    form = f"qemu:CPU (CPU: {', '.join(cpu_names())})"

    def open(self, address: str, settings: Settings, progress: Progress) -> QemuLink:
        """Sets the machine up at the first call, which takes minutes.

        Raises: DeviceError for an unknown CPU, or where the machine cannot be set up.
        """
        name, _, libraries = address.partition(_LIBRARIES)
        if not name:
            raise DeviceError(f"qemu: no CPU is named; write {self.form}")
        other = load_cpu(libraries) if libraries else None
        return QemuLink(set_up(load_cpu(name), progress, other), settings)


DEVICE = Qemu()
