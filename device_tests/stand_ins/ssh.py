"""OpenSSH's server on loopback, whose logins land in a room."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mllm_export.device_tests.stand_ins.ports import free_port
from mllm_export.device_tests.stand_ins.room import Room
from mllm_export.errors import DeviceError
from mllm_export.records import record

_START_S = 10.0


@record
class SshServer:
    """A server that runs."""

    port: int
    folder: Path
    program: str
    """OpenSSH's client."""

    def client(self, key: str = "user") -> Path:
        """A folder whose `ssh` knows this server and that key; it goes first in PATH.

        A user has all this in their own configuration, which belongs to no test.
        """
        folder = self.folder / f"client-{key}"
        folder.mkdir(exist_ok=True)
        host_key = (self.folder / "host.pub").read_text(encoding="ascii")
        known = folder / "known_hosts"
        known.write_text(f"[127.0.0.1]:* {host_key}", encoding="ascii")  # a wire has its own port
        config = folder / "config"
        config.write_text(
            f"Host *\n  IdentityFile {self.folder / key}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {known}\n  StrictHostKeyChecking yes\n",
            encoding="ascii",
        )
        script = folder / "ssh"
        script.write_text(f'#!/bin/sh\nexec {self.program} -F {config} "$@"\n', encoding="ascii")
        script.chmod(0o755)
        return folder


@contextmanager
def ssh_server(room: Room, folder: Path) -> Iterator[SshServer]:
    """Serve the room to the key `user`; `stranger` is a key that it does not know.

    Raises: DeviceError when the server does not start.
    """
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    client = shutil.which("ssh")
    if program is None or client is None:
        raise DeviceError(
            "'sshd' and 'ssh' are needed: apt-get install openssh-server openssh-client"
        )
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd gives up its rights to
    for name in ("host", "user", "stranger"):
        words = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        subprocess.run(words, check=True)
    port = free_port()
    config = _configure(room, folder, port)
    server = subprocess.Popen([program, "-D", "-f", str(config), "-E", str(folder / "log")])
    try:
        _wait_for(server, folder / "log")
        yield SshServer(port=port, folder=folder, program=client)
    finally:
        server.terminate()
        server.wait()


def _configure(room: Room, folder: Path, port: int) -> Path:
    script = folder / "login"
    script.write_text(f"#!/bin/sh\n{room.script('SSH_ORIGINAL_COMMAND')}\n", encoding="ascii")
    script.chmod(0o755)
    config = folder / "sshd_config"
    lines = (
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host'}",
        f"AuthorizedKeysFile {folder / 'user.pub'}",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "UsePAM no",
        "StrictModes no",
        f"PidFile {folder / 'pid'}",
        f"ForceCommand {script}",
    )
    config.write_text("\n".join(lines) + "\n", encoding="ascii")
    return config


def _wait_for(server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if log.is_file() and "Server listening" in log.read_text(errors="replace"):
            return
        if server.poll() is not None:
            break
        time.sleep(0.05)
    said = log.read_text(errors="replace") if log.is_file() else "nothing"
    raise DeviceError(f"sshd did not start; it said: {said.strip()}")
