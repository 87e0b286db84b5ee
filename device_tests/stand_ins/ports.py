"""Ports of loopback, and a wire that breaks."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_BLOCK_BYTES = 1 << 16
_ADB_PROBES = range(5554, 5586)
"""The ports that adb's server looks for emulators at by itself: a device there shows up twice."""


def free_port() -> int:
    """A port that nobody listens at now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _ADB_PROBES:
            return port


@contextmanager
def breaking_wire(to_port: int, after_bytes: int) -> Iterator[int]:
    """A port that leads to another one, until so many bytes went there: then it is dead."""
    listener = socket.create_server(("127.0.0.1", 0))
    left = [after_bytes]
    lock = threading.Lock()

    def carry(source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_BLOCK_BYTES):
                with lock:
                    left[0] -= len(data) if counted else 0
                    dead = left[0] < 0
                if dead:
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                if left[0] < 0:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", to_port))
                threading.Thread(target=carry, args=(near, far, True), daemon=True).start()
                threading.Thread(target=carry, args=(far, near, False), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()
