"""A board behind OpenSSH, played on loopback: the real client, real keys, a real cut."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mllm_export.device_tests.device import Settings, open_device
from mllm_export.device_tests.stand_ins.ports import breaking_wire
from mllm_export.device_tests.stand_ins.room import Room, small_disk
from mllm_export.device_tests.stand_ins.ssh import SshServer
from mllm_export.device_tests.visit import Visit
from mllm_export.errors import DeviceError
from mllm_export.progress import silent
from tests.device_tests.emulated.conftest import ArmBuild, cut_in_the_middle
from tests.mllm_export.commands.conftest import Run, command

__all__ = ["command"]

pytestmark = pytest.mark.xdist_group("ssh")


@pytest.fixture
def board(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATH", f"{server.client()}:{os.environ['PATH']}")
    return f"ssh://root@127.0.0.1:{server.port}"


def test_a_bundle_is_checked_on_the_board(
    command: Run, arm_bundle: ArmBuild, board: str, tmp_path: Path
) -> None:
    words = ("--device", board, "--report", tmp_path)
    outcome = command("check", arm_bundle("int4").folder, *words)
    assert outcome.code == 0, outcome.err
    assert "device" in outcome.out
    assert "passed" in outcome.out
    assert "arm64" in (tmp_path / "report.json").read_text(encoding="utf-8")


def test_a_cut_transfer_fails_clearly_and_goes_on(
    arm_bundle: ArmBuild, board: str, server: SshServer
) -> None:
    bundle = arm_bundle("f16")
    with breaking_wire(server.port, after_bytes=6 << 20) as wire:
        link = open_device(f"ssh://root@127.0.0.1:{wire.port}", Settings(timeout_s=60), silent)
        visit = Visit(link, 60, silent)
        with pytest.raises(DeviceError, match="MiB had arrived and stay there: run the same"):
            visit.push(bundle)
    again = Visit(open_device(board, Settings(timeout_s=60), silent), 60, silent)
    _, sent = again.push(bundle)
    assert sent.resumed_bytes >= 4 << 20
    assert sent.sent_bytes + sent.resumed_bytes > 9_000_000
    assert again.push(bundle)[1].files == 0
    again.close()


def test_a_board_lost_in_the_middle_of_a_job_says_what_was_done(
    arm_bundle: ArmBuild, board: str, server: SshServer
) -> None:
    assert board
    said = cut_in_the_middle(
        server.port,
        arm_bundle("int4"),
        lambda port: open_device(f"ssh://root@127.0.0.1:{port}", Settings(), silent),
    )
    assert re.search(r"does 'ssh -p \d+ root@127.0.0.1 true' work\?", said)
    assert re.search(r"of the job it had done: \d+ of 60 questions answered\)", said)


def test_a_stranger_is_told_that_the_key_is_wrong(
    command: Run, server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{server.client('stranger')}:{os.environ['PATH']}")
    outcome = command("device", "describe", f"ssh://root@127.0.0.1:{server.port}")
    assert outcome.code == 2
    assert "Permission denied (publickey)" in outcome.error
    assert f"does 'ssh -p {server.port} root@127.0.0.1 true' work?" in outcome.error


def test_a_full_board_is_told_before_the_bundle_is_sent(
    command: Run, arm_bundle: ArmBuild, board: str, pi: Room
) -> None:
    with small_disk(pi.root / "root" / "small", size_mib=2):
        words = ("--device", board, "--device-home", "small")
        outcome = command("check", arm_bundle("int4").folder, *words)
    assert outcome.code == 2
    assert "MiB free," in outcome.error
    assert "make room, or name another folder with --device-home" in outcome.error


def test_a_board_without_python_is_told_what_to_install(command: Run, board: str) -> None:
    outcome = command("device", "describe", board, "--device-python", "python9")
    assert outcome.code == 2
    assert "no Python there" in outcome.error
    assert "A device that cannot have Python is not supported" in outcome.error


def test_bench_tells_times_of_a_board(command: Run, arm_bundle: ArmBuild, board: str) -> None:
    words = ("--device", board, "--repeats", "1", "--max-tokens", "3", "--threads", "1")
    outcome = command("bench", arm_bundle("int4").folder, *words)
    assert outcome.code == 0, outcome.err
    assert "decode per token" in outcome.out
    assert "arm64, " in outcome.out
