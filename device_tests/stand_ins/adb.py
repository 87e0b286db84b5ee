"""A phone on loopback: the real adb client talks to it, a room answers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mllm_export.device_tests.stand_ins.adbd import Connection
from mllm_export.device_tests.stand_ins.ports import free_port
from mllm_export.device_tests.stand_ins.room import Room


@contextmanager
def adb_device(room: Room) -> Iterator[int]:
    """The port of a device that `adb connect 127.0.0.1:PORT` finds."""
    (room.root / "data/local/tmp").mkdir(parents=True, exist_ok=True)
    loop = asyncio.new_event_loop()
    port = free_port()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(room, reader, writer).run()

    server = loop.run_until_complete(asyncio.start_server(meet, "127.0.0.1", port))
    # Children are waited for by threads, for this loop is not the main thread's.
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextmanager
def adb_client(folder: Path) -> Iterator[dict[str, str]]:
    """Settings of an adb server of our own, with its keys in `folder`; ended at the end."""
    settings = {"ANDROID_ADB_SERVER_PORT": str(free_port()), "HOME": str(folder)}
    try:
        yield settings
    finally:
        subprocess.run(
            ["adb", "kill-server"], env={**os.environ, **settings}, check=False, capture_output=True
        )
