"""A phone, or any machine that adb's own client reaches."""

from __future__ import annotations

import secrets
import shlex
import tempfile
from pathlib import Path

from mllm_export.device_tests.device import Completed, Counter, Settings
from mllm_export.device_tests.devices._process import run_process
from mllm_export.errors import DeviceError, DeviceLostError
from mllm_export.progress import Progress

_HOME = "/data/local/tmp/mllm-export"
"""The folder that a shell user may write to and execute from. Source: Android, adb's manual."""

_LOST = ("error: device", "error: no devices", "error: closed", "adb: error: failed to get")
_HINT = "; is it listed by 'adb devices', and unlocked?"
_CUT = 255
"""What `adb shell` ends with when the device went away. Source: adb, client/commandline.cpp."""


class AdbLink:
    """Commands through `adb -s SERIAL shell`."""

    emulated = False
    counter: Counter | None = None

    def __init__(self, serial: str, settings: Settings) -> None:
        """Connects at the first command."""
        self.title = f"adb:{serial}"
        self.home = settings.home or _HOME
        self.python = settings.python or "python3"
        self._words = ("adb", "-s", serial)

    def shell(self, command: str, timeout_s: float, data: bytes = b"") -> Completed:
        """Run a line of the device's shell; input goes through a file, for old adb has no other.

        Raises: DeviceError when the device is lost.
        """
        if data:
            # Of its own name, for another visit may send at the same time. Open, the file is read
            # to its end though it is removed, and a command that is cut short leaves nothing.
            piped = f"{self.home}/.stdin-{secrets.token_hex(8)}"
            self._send(data, piped, timeout_s)
            quoted = shlex.quote(piped)
            command = f"{{ rm -f {quoted}; {command}; }} < {quoted}"
        return self._checked(("shell", command), timeout_s)

    def fetch(self, remote: str, local: Path, timeout_s: float) -> None:
        """Copy one file here."""
        done = self._checked(("pull", remote, str(local)), timeout_s)
        if done.code:
            said = done.last_line("the connection ended")
            raise DeviceError(f"{self.title}: {remote} cannot be read ({said}){_HINT}")

    def close(self) -> None:
        """The adb server is the user's: it stays."""

    def _send(self, data: bytes, remote: str, timeout_s: float) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            done = self._checked(("push", file.name, remote), timeout_s)
        if done.code:
            said = done.last_line("the connection ended")
            raise DeviceError(f"{self.title}: {remote} cannot be written ({said}){_HINT}")

    def _checked(self, words: tuple[str, ...], timeout_s: float) -> Completed:
        done = run_process((*self._words, *words), self.title, timeout_s)
        if done.code == _CUT or (done.code and done.last_line().startswith(_LOST)):
            said = done.last_line("the connection ended")
            raise DeviceLostError(f"{self.title}: {said}{_HINT}", done.err)
        return done


class Adb:
    """`adb:SERIAL`."""

    form = "adb:SERIAL"

    def open(self, address: str, settings: Settings, progress: Progress) -> AdbLink:
        """Raises: DeviceError when no serial is named."""
        del progress
        if not address:
            raise DeviceError(f"adb: no serial is named; write {self.form}, see 'adb devices'")
        return AdbLink(address, settings)


DEVICE = Adb()
