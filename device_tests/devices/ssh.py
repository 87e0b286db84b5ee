"""A machine that is reached by OpenSSH's client, with the user's own configuration and keys."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from mllm_export.device_tests.device import Completed, Counter, Settings
from mllm_export.device_tests.devices._process import run_process
from mllm_export.errors import DeviceError, DeviceLostError
from mllm_export.progress import Progress

_LOST = 255
"""What ssh ends with when the connection failed. Source: ssh(1), EXIT STATUS."""

_OPTIONS = (
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
)
"""Never ask for a password, and notice a machine that is gone within half a minute."""


class SshLink:
    """One connection, shared by all commands."""

    emulated = False
    counter: Counter | None = None

    def __init__(self, host: str, port: int | None, settings: Settings) -> None:
        """Connects at the first command."""
        self.title = f"ssh://{host}" + (f":{port}" if port else "")
        self.home = settings.home or ".cache/mllm-export"
        self.python = settings.python or "python3"
        self._sockets = tempfile.mkdtemp(prefix="mllm-ssh-")
        shared = ("-o", "ControlMaster=auto", "-o", "ControlPersist=60")
        socket = ("-o", f"ControlPath={self._sockets}/socket")
        where = ("-p", str(port)) if port else ()
        # Behind the hyphens nothing is an option, whatever the user's address begins with.
        self._words = ("ssh", *_OPTIONS, *shared, *socket, *where, "--", host)
        self._plain = " ".join(("ssh", *where, host))

    def shell(self, command: str, timeout_s: float, data: bytes = b"") -> Completed:
        """Run a line of the device's shell. Raises: DeviceError when the connection fails."""
        done = run_process((*self._words, command), self.title, timeout_s, data)
        if done.code == _LOST:
            said = done.last_line("the connection ended")
            raise DeviceLostError(
                f"{self.title}: {said}; does '{self._plain} true' work?", done.err
            )
        return done

    def fetch(self, remote: str, local: Path, timeout_s: float) -> None:
        """Copy one file here."""
        done = self.shell(f"cat {shlex.quote(remote)}", timeout_s)
        if done.code:
            raise DeviceError(f"{self.title}: {remote} cannot be read ({done.last_line()})")
        local.write_bytes(done.out)

    def close(self) -> None:
        """End the shared connection."""
        run_process((*self._words[:-2], "-O", "exit", *self._words[-2:]), self.title, 15.0)
        shutil.rmtree(self._sockets, ignore_errors=True)


class Ssh:
    """`ssh://user@host[:port]`."""

    form = "ssh://user@host[:port]"

    def open(self, address: str, settings: Settings, progress: Progress) -> SshLink:
        """Raises: DeviceError for an address of another form."""
        del progress
        try:
            parts = urlsplit(f"ssh:{address}")
            host, port = _host(parts.netloc), parts.port
        except ValueError as failure:
            raise DeviceError(f"ssh:{address}: {failure}; write {self.form}") from None
        if not host or parts.path.strip("/"):
            raise DeviceError(f"ssh:{address} names no host; write {self.form}")
        whole = f"{parts.username}@{host}" if parts.username else host
        if host.startswith("-") or whole.startswith("-"):
            raise DeviceError(
                f"ssh:{address}: a user or host that begins with a hyphen is an option to ssh; "
                f"write {self.form}"
            )
        return SshLink(whole, port, settings)


def _host(netloc: str) -> str:
    """The host of `[user@]host[:port]` as it is written, an IPv6 address without its brackets.

    urlsplit's own is in lower case, and `Host` of ssh_config(5) tells cases apart.
    """
    place = netloc.rpartition("@")[2]
    return place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0]


DEVICE = Ssh()
