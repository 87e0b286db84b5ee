"""The device protocol: what a way to reach a machine must offer, and how it is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mllm_export.catalog import Catalog, unknown
from mllm_export.errors import DeviceError
from mllm_export.progress import Progress
from mllm_export.records import record
from mllm_export.runtimes.job import DONE


@record
class Completed:
    """A command that ended on the device."""

    code: int
    out: bytes
    err: bytes

    def last_line(self, otherwise: str = "it printed nothing") -> str:
        """What it complained of, for an error message."""
        lines = [line for line in _lines(self.err) if not line.startswith(DONE)]
        return lines[-1].rstrip(".") if lines else otherwise


def done_so_far(printed: bytes) -> str:
    """What a runner said last of its progress; empty before it said anything."""
    lines = [line.removeprefix(DONE) for line in _lines(printed) if line.startswith(DONE)]
    return lines[-1] if lines else ""


def _lines(printed: bytes) -> list[str]:
    return printed.decode("utf-8", "replace").strip().splitlines()


Counter = Callable[[str, float], tuple[Completed, str]]
"""Command and seconds allowed to how it ended and its counts: JSON lines, one for each mark."""


class Link(Protocol):
    """An open way to one device. Paths on the device are POSIX, relative to `home` or absolute."""

    title: str
    """The device as the user named it."""
    home: str
    """Folder on the device that is ours."""
    python: str
    """Shell words that start Python there."""
    emulated: bool
    """True: times mean nothing there."""
    counter: Counter | None
    """Runs a command with its instructions counted; None where they cannot be."""

    def shell(self, command: str, timeout_s: float, data: bytes = b"") -> Completed:
        """Run a line of shell with `data` on its standard input.

        Raises: DeviceError when the device is not reached, is lost, or takes too long.
        """

    def fetch(self, remote: str, local: Path, timeout_s: float) -> None:
        """Copy one file here. Raises: DeviceError."""

    def close(self) -> None:
        """End the connection."""


@record
class Settings:
    """What the user may set about reaching a device."""

    timeout_s: float = 600.0
    """For one command on the device."""
    python: str = ""
    """The device's Python, where it is not the usual one."""
    home: str = ""
    """The folder for our files there, where it is not the usual one."""


class DeviceKind(Protocol):
    """One file of device_tests/devices."""

    form: str
    """How a device of this kind is named, for messages."""

    def open(self, address: str, settings: Settings, progress: Progress) -> Link:
        """Reach the device. Raises: DeviceError, saying what to do."""


DEVICES: Catalog[DeviceKind] = Catalog(
    "mllm_export.device_tests.devices", "DEVICE", "device kind", DeviceError
)


def open_device(name: str, settings: Settings, progress: Progress) -> Link:
    """`local`, `qemu:CPU`, `ssh://user@host[:port]` or `adb:SERIAL`.

    Raises: DeviceError for another form, or a device that cannot be reached.
    """
    kind, _, address = name.partition(":")
    if kind not in DEVICES.names():
        forms = ", ".join(DEVICES[known].form for known in DEVICES.names())
        raise DeviceError(f"{unknown('device kind', kind, DEVICES.names())}; write one of: {forms}")
    return DEVICES[kind].open(address, settings, progress)
