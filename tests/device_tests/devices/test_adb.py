"""What a phone is left with: a program of adb's name copies and runs on this machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mllm_export.device_tests.device import Settings, open_device
from mllm_export.progress import silent

_ADB = """\
#!/bin/sh
case "$3" in
push) cp "$4" "$5" && echo pushed >> {pushed} ;;
shell)
  while [ "$(wc -l < {pushed})" -lt {visits} ]; do sleep 0.01; done
  exec sh -c "$4" ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "phone's own"
    folder.mkdir()
    return folder


def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visits: int) -> None:
    """No command starts before so many visits have sent what theirs reads."""
    program, pushed = tmp_path / "bin" / "adb", tmp_path / "pushed"
    pushed.write_text("", encoding="ascii")
    program.parent.mkdir()
    program.write_text(_ADB.format(pushed=pushed, visits=visits), encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def test_two_visits_at_once_each_read_their_own_input(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path, monkeypatch, visits=2)
    sent = [b"one" * 999, b"another" * 999]

    def visit(data: bytes) -> bytes:
        link = open_device("adb:R58N", Settings(home=str(home)), silent)
        return link.shell("cat", 60, data).out

    with ThreadPoolExecutor(2) as both:
        assert list(both.map(visit, sent)) == sent
    assert list(home.iterdir()) == []


def test_input_is_removed_and_the_commands_own_end_is_told(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path, monkeypatch, visits=1)
    link = open_device("adb:R58N", Settings(home=str(home)), silent)
    done = link.shell("wc -c; exit 3", 60, b"x" * 1234)
    assert (done.code, done.out.split()) == (3, [b"1234"])
    assert list(home.iterdir()) == []
