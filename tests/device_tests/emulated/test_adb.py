"""A phone, played on loopback: the real adb client, and a cable that is pulled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from mllm_export.device_tests.device import Settings, open_device
from mllm_export.device_tests.stand_ins.ports import breaking_wire
from mllm_export.device_tests.visit import Visit
from mllm_export.errors import DeviceError
from mllm_export.progress import silent
from tests.device_tests.emulated.conftest import ArmBuild
from tests.mllm_export.commands.conftest import Run, command

__all__ = ["command"]

pytestmark = pytest.mark.xdist_group("adb")


@pytest.fixture
def serial(phone: tuple[int, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    port, settings = phone
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    subprocess.run(["adb", "connect", f"127.0.0.1:{port}"], check=True, capture_output=True)
    yield f"127.0.0.1:{port}"
    subprocess.run(["adb", "disconnect"], check=True, capture_output=True)


def test_a_bundle_is_checked_on_the_phone(command: Run, arm_bundle: ArmBuild, serial: str) -> None:
    outcome = command("check", arm_bundle("int8").folder, "--device", f"adb:{serial}")
    assert outcome.code == 0, outcome.err
    assert "passed" in outcome.out


def test_a_phone_that_is_not_there_is_told(command: Run, serial: str) -> None:
    outcome = command("device", "describe", "adb:R58N123")
    assert outcome.code == 2
    assert "device 'R58N123' not found; is it listed by 'adb devices'" in outcome.error


def test_a_pulled_cable_fails_clearly_and_goes_on(arm_bundle: ArmBuild, serial: str) -> None:
    bundle = arm_bundle("f16")
    with breaking_wire(int(serial.partition(":")[2]), after_bytes=6 << 20) as wire:
        broken = f"127.0.0.1:{wire.port}"
        subprocess.run(["adb", "connect", broken], check=True, capture_output=True)
        visit = Visit(open_device(f"adb:{broken}", Settings(), silent), 60, silent)
        with pytest.raises(DeviceError, match="MiB had arrived and stay there: run the same"):
            visit.push(bundle)
    again = Visit(open_device(f"adb:{serial}", Settings(), silent), 60, silent)
    _, sent = again.push(bundle)
    assert sent.resumed_bytes >= 4 << 20
    assert again.push(bundle)[1].files == 0
