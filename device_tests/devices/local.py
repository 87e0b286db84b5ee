"""This machine itself, treated as any other device."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from mllm_export.caches import cache_folder
from mllm_export.device_tests.device import Completed, Counter, Settings
from mllm_export.device_tests.devices._process import run_process
from mllm_export.errors import DeviceError
from mllm_export.progress import Progress


class LocalLink:
    """Commands run in this machine's own shell."""

    title = "local"
    emulated = False
    counter: Counter | None = None

    def __init__(self, settings: Settings) -> None:
        """Nothing runs yet."""
        self.home = settings.home or str(cache_folder() / "device-local")
        self.python = settings.python or shlex.quote(sys.executable)

    def shell(self, command: str, timeout_s: float, data: bytes = b"") -> Completed:
        """Run a line of shell."""
        return run_process(("sh", "-c", command), self.title, timeout_s, data)

    def fetch(self, remote: str, local: Path, timeout_s: float) -> None:
        """Copy one file here."""
        del timeout_s
        shutil.copyfile(remote, local)

    def close(self) -> None:
        """Nothing to end."""


class Local:
    """`local`."""

    form = "local"

    def open(self, address: str, settings: Settings, progress: Progress) -> LocalLink:
        """Raises: DeviceError for an address, which it has not."""
        del progress
        if address:
            raise DeviceError(f"local:{address}: this device has no address; write 'local'")
        return LocalLink(settings)


DEVICE = Local()
