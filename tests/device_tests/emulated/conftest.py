"""Emulated machines and stand-ins, set up once; without the tools these tests are skipped.

MLLM_REQUIRE_EMULATION=1 makes a machine that lacks them a failure, as CI wants it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mllm_export.bundle import Bundle, open_bundle
from mllm_export.device_tests.device import Completed, Link
from mllm_export.device_tests.emulation.cpu import load_cpu
from mllm_export.device_tests.emulation.machine import TOOLS, set_up
from mllm_export.device_tests.stand_ins.adb import adb_client, adb_device
from mllm_export.device_tests.stand_ins.ports import Wire, breaking_wire
from mllm_export.device_tests.stand_ins.room import Room, room
from mllm_export.device_tests.stand_ins.ssh import SshServer, ssh_server
from mllm_export.device_tests.visit import Visit
from mllm_export.errors import DeviceError
from mllm_export.progress import silent
from mllm_export.runtimes.job import Asked, Job

STAND_INS = ("qemu-aarch64-static", "sshd", "ssh", "adb", "mount")
ArmBuild = Callable[[str], Bundle]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [t for t in (*TOOLS, *STAND_INS) if shutil.which(t, path=_path()) is None]
    reason = f"not installed: {', '.join(missing)}" if missing else ""
    if not reason and os.geteuid() != 0:
        reason = "playing a device needs root"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.emulated)
            if reason and not os.environ.get("MLLM_REQUIRE_EMULATION"):
                item.add_marker(pytest.mark.skip(reason=reason))


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin"


@pytest.fixture(scope="session")
def arm_bundle(
    tmp_path_factory: pytest.TempPathFactory,
) -> ArmBuild:
    """The reference's bundles for linux-arm64, built once for all processes of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "arm-bundles"
    folder.mkdir(exist_ok=True)

    def build(recipe: str) -> Bundle:
        out = folder / recipe
        with (folder / f"{recipe}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not out.exists():
                words = ("build", "reference", "--target", "linux-arm64", "--recipe", recipe)
                subprocess.run(
                    [sys.executable, "-m", "mllm_export", *words, "-o", str(out)],
                    check=True,
                    capture_output=True,
                )
        return open_bundle(out)

    return build


@pytest.fixture(scope="module")
def pi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """A room with a Raspberry Pi 5's core in it."""
    with room(set_up(load_cpu("cortex-a76"), silent)) as made:
        yield made


@pytest.fixture(scope="module")
def server(pi: Room, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """OpenSSH in front of it."""
    with ssh_server(pi, tmp_path_factory.mktemp("sshd")) as made:
        yield made


@pytest.fixture(scope="module")
def phone(
    pi: Room, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, dict[str, str]]]:
    """The port of an adb device, and the environment of our own adb server."""
    with (
        adb_device(pi) as port,
        adb_client(tmp_path_factory.mktemp("adb")) as settings,
    ):
        yield port, settings


def cut_in_the_middle(port: int, bundle: Bundle, reach: Callable[[int], Link]) -> str:
    """What is said when a wire to the port is cut while a runner answers; later if it had not."""
    said = ""
    for work_s in (15.0, 60.0, 240.0):
        with breaking_wire(port) as wire:
            link = reach(wire.port)
            with pytest.raises(DeviceError) as lost:
                _ask_until_cut(link, bundle, wire, work_s)
        said = str(lost.value)
        if "nothing yet" not in said:
            break
    return said


def _ask_until_cut(link: Link, bundle: Bundle, wire: Wire, work_s: float) -> None:
    visit = Visit(link, 300, silent)
    remote, _ = visit.push(bundle)
    pictures = {file.name: file for file in (bundle.folder / "golden").glob("*.png")}
    # Another picture each time, so that nothing is remembered.
    two = sorted(pictures)[:2] * 30
    asked = tuple(Asked(picture=name, question="What is in the picture?") for name in two)
    real_shell = link.shell

    def shell(line: str, timeout_s: float, data: bytes = b"") -> Completed:
        if " run " in line:
            threading.Timer(work_s, wire.cut).start()
        return real_shell(line, timeout_s, data)

    link.shell = shell  # type: ignore[method-assign]
    visit.run(remote, Job(threads=1, asked=asked, max_tokens=2), pictures)
