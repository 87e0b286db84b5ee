"""What a board tells of itself: files of Linux, flags of a Raspberry Pi's firmware, or nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mllm_export.runtimes import machine
from mllm_export.runtimes.machine import MachineState, state


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that tells nothing yet."""
    for name, file in (("_CPUFREQ", "cpufreq"), ("_THERMAL", "temp"), ("_THROTTLED", "flags")):
        monkeypatch.setattr(machine, name, tmp_path / file)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def test_a_machine_that_tells_nothing_gets_no_figures(board: Path) -> None:
    del board
    nothing = MachineState(governor=None, clock_mhz=None, temperature_c=None, throttled=None)
    assert state() == nothing


def test_a_board_tells_in_files(board: Path) -> None:
    (board / "cpufreq").mkdir()
    (board / "cpufreq/scaling_cur_freq").write_text("2400000\n")
    (board / "cpufreq/scaling_governor").write_text("ondemand\n")
    (board / "temp").write_text("61850\n")
    (board / "flags").write_text("50000\n")
    told = MachineState(
        governor="ondemand", clock_mhz=2400.0, temperature_c=61.85, throttled="50000"
    )
    assert state() == told


@pytest.mark.skipif(sys.platform == "win32", reason="a script that is a program")
@pytest.mark.parametrize(
    ("printed", "flags"),
    [
        ("throttled=0x0", "0"),
        ("throttled=0x50005", "50005"),
        ("VCHI initialization failed", None),
        ("", None),
    ],
)
def test_a_board_without_the_file_is_asked_by_the_firmwares_tool(
    board: Path, printed: str, flags: str | None
) -> None:
    tool = board / "bin" / "vcgencmd"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n[ "$1" = get_throttled ] && echo "{printed}"\n')
    tool.chmod(0o755)
    assert state().throttled == flags
