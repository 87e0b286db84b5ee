"""What `check` and `bench` do on a device."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_export.errors import DeviceError
from mllm_export.records import record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mllm_export.bundle import Bundle
    from mllm_export.device_tests.device import Link
    from mllm_export.progress import Progress
    from mllm_export.report import Report


@record
class Place:
    """A device as it was named, and what was said about reaching it."""

    device: str
    timeout_s: float
    python: str
    home: str

    @staticmethod
    def named(device: str | None, timeout_s: float, python: str, home: str) -> Place | None:
        """None for no device; options about one that was not named are a mistake.

        Raises: DeviceError.
        """
        if device is not None:
            return Place(device=device, timeout_s=timeout_s, python=python, home=home)
        if python or home:
            raise DeviceError("--device-python and --device-home need --device")
        return None

    @contextmanager
    def reach(self) -> Iterator[tuple[Link, Progress]]:
        """The open way to it, with progress drawn; closed at the end."""
        from mllm_export.device_tests.device import Settings, open_device
        from mllm_export.terminal import ProgressBars

        settings = Settings(timeout_s=self.timeout_s, python=self.python, home=self.home)
        with ProgressBars() as progress:
            link = open_device(self.device, settings, progress)
            try:
                yield link, progress
            finally:
                link.close()


def refuse_alone(place: Place | None, bundle: Path) -> None:
    """Raises: DeviceError where an encoder alone was to be run on a device."""
    if place is not None:
        raise DeviceError(
            f"{bundle} is an encoder alone, which devices are not asked about yet; check it here "
            "with --against"
        )


def check_there(
    bundle: Bundle, place: Place, against: str | None, evaluation: Path | None, questions: int
) -> Report:
    """The device rung.

    Raises: DeviceError, also where the original was named, which does not go to a device.
    """
    from mllm_export.device_tests.device_report import device_report

    if against is not None:
        raise DeviceError(
            "--device compares the device with this machine, --against this machine with the "
            "original: give one of them"
        )
    with place.reach() as (link, progress):
        return device_report(
            bundle,
            link,
            evaluation=evaluation,
            questions=questions,
            timeout_s=place.timeout_s,
            progress=progress,
        )
