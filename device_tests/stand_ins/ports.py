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


class Wire:
    """A port of loopback that leads to another one, until it is cut."""

    def __init__(self, to_port: int, after_bytes: int) -> None:
        """It cuts itself when so many bytes went there."""
        self._far, self._left = to_port, after_bytes
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        """Whoever holds an end notices; a new connection is closed at once."""
        with self._lock:
            self._left = -1
            ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut, and leave the port."""
        self.cut()
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._left < 0:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._far))
                with self._lock:
                    self._ends += (near, far)
                for source, target, counted in ((near, far, True), (far, near, False)):
                    carrier = threading.Thread(
                        target=self._carry, args=(source, target, counted), daemon=True
                    )
                    carrier.start()

    def _carry(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_BLOCK_BYTES):
                with self._lock:
                    self._left -= len(data) if counted else 0
                    dead = self._left < 0
                if dead:
                    self.cut()
                    return
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def breaking_wire(to_port: int, after_bytes: int = 1 << 40) -> Iterator[Wire]:
    """A wire to the port, which stays until it has carried so many bytes there."""
    wire = Wire(to_port, after_bytes)
    try:
        yield wire
    finally:
        wire.close()
