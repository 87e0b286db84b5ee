"""What OpenSSH's client is called with: a program of its name writes down its words."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mllm_export.device_tests.device import Settings, open_device
from mllm_export.errors import DeviceError
from mllm_export.progress import silent

Words = Callable[[], list[list[str]]]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Words:
    """The calls so far, word by word."""
    told = tmp_path / "told"
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" END >> {told}\n", encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    def read() -> list[list[str]]:
        calls = told.read_text(encoding="utf-8").split("END\n")
        return [call.splitlines() for call in calls[:-1]]

    return read


PLACES = {
    "ssh://MyBoard": ([], "MyBoard"),
    "ssh://Pi@MyBoard.local:2222": (["-p", "2222"], "Pi@MyBoard.local"),
    "ssh://pi@[FE80::1]:22": (["-p", "22"], "pi@FE80::1"),
    "ssh://[::1]": ([], "::1"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_host_is_called_as_it_was_written(words: Words, name: str) -> None:
    port, host = PLACES[name]
    link = open_device(name, Settings(), silent)
    link.shell("true", 10)
    link.close()
    ran, ended = words()
    at = ran.index("--")
    assert ran[at:] == ["--", host, "true"]
    assert ended[:at] == ran[:at]
    assert ended[at:] == ["-O", "exit", "--", host]
    assert [one for one in ran[:at] if one in {"-p", *port}] == port


@pytest.mark.parametrize("address", ["-oProxyCommand=x", "-l@board", "pi@-board", "-v:22"])
def test_a_host_that_ssh_would_take_for_an_option_is_refused(address: str) -> None:
    with pytest.raises(DeviceError, match="begins with a hyphen is an option to ssh; write ssh://"):
        open_device(f"ssh://{address}", Settings(), silent)


def test_the_real_client_finds_a_host_by_its_case_behind_two_hyphens(tmp_path: Path) -> None:
    """What the calls above rely on, where OpenSSH is installed."""
    config = tmp_path / "config"
    config.write_text("Host MyBoard\n  HostName 192.0.2.7\n", encoding="ascii")
    command = ["ssh", "-G", "-F", str(config), "--", "MyBoard", "-v"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("not installed: ssh")
    assert "hostname 192.0.2.7" in done.stdout.splitlines()
