"""The device's side of adb's protocol, as far as shell, push and pull need it; a room behind it.

Source: Android, packages/modules/adb: protocol.txt, SERVICES.TXT, SYNC.TXT, shell_protocol.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path

from mllm_export.device_tests.stand_ins.room import Room

_VERSION = 0x01000000
_MAX_DATA_BYTES = 4096
_BANNER = (
    b"device::ro.product.name=room;ro.product.model=arm64;ro.product.device=room;features=shell_v2"
)

_MESSAGE = struct.Struct("<4sIIIII")
"""Command, two arguments, length, sum of the data's bytes, command inverted."""

_STDOUT, _STDERR, _EXIT = 1, 2, 3
"""Packet ids of shell_v2."""

_REFUSED = b"FAIL"


class Stream:
    """One service that the client opened."""

    def __init__(self, connection: Connection, local_id: int, remote_id: int) -> None:
        """Nothing is sent yet."""
        self._connection = connection
        self.local_id = local_id
        self.remote_id = remote_id
        self.arrived: asyncio.Queue[bytes] = asyncio.Queue()
        """Data of the client; empty bytes when it closed."""
        self.taken = asyncio.Event()
        self._rest = b""

    async def write(self, data: bytes) -> None:
        """Send, a message at a time, each after the one before was taken."""
        for start in range(0, len(data), _MAX_DATA_BYTES):
            self.taken.clear()
            block = data[start : start + _MAX_DATA_BYTES]
            await self._connection.send(b"WRTE", self.local_id, self.remote_id, block)
            await self.taken.wait()

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes. Raises: ConnectionError when the client closed before."""
        while len(self._rest) < size:
            block = await self.arrived.get()
            if not block:
                raise ConnectionError("the client closed")
            self._rest += block
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


class Connection:
    """One adb server that connected."""

    def __init__(
        self, room: Room, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """`run` does the rest."""
        self._room = room
        self._reader = reader
        self._writer = writer
        self._streams: dict[int, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        """One message."""
        number = int.from_bytes(command, "little")
        header = _MESSAGE.pack(
            command, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF
        )
        self._writer.write(header + data)
        await self._writer.drain()

    async def run(self) -> None:
        """Until the client goes."""
        try:
            while True:
                header = _MESSAGE.unpack(await self._reader.readexactly(_MESSAGE.size))
                command, first, second, size = header[:4]
                await self._handle(command, first, second, await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for task in self._tasks:
                task.cancel()
            self._writer.close()

    async def _handle(self, command: bytes, first: int, second: int, data: bytes) -> None:
        stream = self._streams.get(second)
        if command == b"CNXN":
            await self.send(b"CNXN", _VERSION, _MAX_DATA_BYTES, _BANNER)
        elif command == b"OPEN":
            await self._open(first, data.rstrip(b"\0").decode("utf-8"))
        elif stream is None:
            return
        elif command == b"OKAY":
            stream.taken.set()
        elif command == b"WRTE":
            stream.arrived.put_nowait(data)
            await self.send(b"OKAY", second, first)
        elif command == b"CLSE":
            stream.arrived.put_nowait(b"")
            stream.taken.set()

    async def _open(self, remote_id: int, service: str) -> None:
        stream = Stream(self, len(self._streams) + 1, remote_id)
        self._streams[stream.local_id] = stream
        await self.send(b"OKAY", stream.local_id, remote_id)
        task = asyncio.create_task(self._serve(stream, service))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: Stream, service: str) -> None:
        name, _, argument = service.partition(":")
        with contextlib.suppress(ConnectionError):
            if name.startswith("shell"):
                await _run_shell(stream, self._room, argument)
            elif name == "sync":
                await _synchronise(stream, self._room.root)
        await self.send(b"CLSE", stream.local_id, stream.remote_id)


async def _run_shell(stream: Stream, room: Room, line: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *room.command(line),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None, "asked for"
    assert process.stderr is not None, "asked for"
    turn = asyncio.Lock()  # a packet may take several messages

    async def carry(source: asyncio.StreamReader, packet: int) -> None:
        while data := await source.read(_MAX_DATA_BYTES - 5):
            async with turn:
                await stream.write(struct.pack("<BI", packet, len(data)) + data)

    try:
        await asyncio.gather(carry(process.stdout, _STDOUT), carry(process.stderr, _STDERR))
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    await stream.write(struct.pack("<BIB", _EXIT, 1, code & 255))


async def _synchronise(stream: Stream, root: Path) -> None:
    """File transfers: STAT, SEND, RECV, until QUIT."""
    while True:
        command, size = struct.unpack("<4sI", await stream.read(8))
        if command == b"QUIT":
            return
        name = (await stream.read(size)).decode("utf-8")
        if command == b"STAT":
            await stream.write(_stat(root / name.lstrip("/")))
        elif command == b"SEND":
            path, _, _ = name.rpartition(",")  # what follows is the mode
            await _receive(stream, root / path.lstrip("/"))
        elif command == b"RECV":
            async for block in _blocks(root / name.lstrip("/")):
                await stream.write(block)


def _stat(path: Path) -> bytes:
    try:
        found = path.stat()
    except OSError:
        return struct.pack("<4sIII", b"STAT", 0, 0, 0)
    return struct.pack("<4sIII", b"STAT", found.st_mode, found.st_size, int(found.st_mtime))


async def _receive(stream: Stream, path: Path) -> None:
    """One file; an answer is expected after the last of it, whatever went wrong before."""
    content = bytearray()
    while True:
        command, size = struct.unpack("<4sI", await stream.read(8))
        if command != b"DATA":  # DONE, with a time in place of the size
            break
        content += await stream.read(size)
    try:
        path.write_bytes(content)
    except OSError as failure:
        text = (failure.strerror or str(failure)).encode()
        await stream.write(struct.pack("<4sI", _REFUSED, len(text)) + text)
    else:
        await stream.write(struct.pack("<4sI", b"OKAY", 0))


async def _blocks(path: Path) -> AsyncIterator[bytes]:
    try:
        with path.open("rb") as file:
            while data := file.read(_MAX_DATA_BYTES - 8):
                yield struct.pack("<4sI", b"DATA", len(data)) + data
    except OSError as failure:
        text = str(failure).encode()
        yield struct.pack("<4sI", _REFUSED, len(text)) + text
        return
    yield struct.pack("<4sI", b"DONE", 0)
