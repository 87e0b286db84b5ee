"""Files to a device: only those whose hash differs, in pieces, so that a cut one goes on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from mllm_export.device_tests.device import Link
from mllm_export.device_tests.emulation.cache import alone
from mllm_export.errors import DeviceError
from mllm_export.progress import Progress, Step
from mllm_export.records import record

_PIECE_BYTES = 4 << 20
"""What a lost connection costs at most."""


@record
class Wanted:
    """A file that must stand on the device."""

    path: Path
    """Here."""
    sha256: str
    size_bytes: int

    def part(self, name: str) -> str:
        """Where it stands until it is whole; another version of the file has another part."""
        return f"{name}.{self.sha256[:12]}.part"


@record
class Sent:
    """What a transfer did."""

    files: int
    """Files that were sent, whole or the rest of them."""
    kept: int
    """Files that were there already."""
    sent_bytes: int
    resumed_bytes: int
    """Bytes of cut transfers that did not have to be sent again."""


def push(
    link: Link, folder: str, files: Mapping[str, Wanted], timeout_s: float, progress: Progress
) -> Sent:
    """Make `folder` on the device hold these files (by relative path), and check their hashes.

    Two of them here would both go on with the same part, so one waits for the other.

    Raises: DeviceError when the device is lost, has no room, or a file arrives changed; what
    has arrived stays, and the next call goes on from there.
    """
    with alone(f"{link.title} {folder}"):
        return _push(link, folder, files, timeout_s, progress)


def _push(
    link: Link, folder: str, files: Mapping[str, Wanted], timeout_s: float, progress: Progress
) -> Sent:
    _make_folders(link, folder, files, timeout_s)
    there = _hashes(link, folder, files, timeout_s)
    missing = {name: one for name, one in files.items() if there.get(name) != one.sha256}
    if not missing:
        return Sent(files=0, kept=len(files), sent_bytes=0, resumed_bytes=0)
    begun = _begun(link, folder, missing, timeout_s)
    total, resumed = sum(one.size_bytes for one in missing.values()), sum(begun.values())
    _require_room(link, folder, total - resumed, timeout_s)
    done = resumed
    for name, wanted in missing.items():
        for piece in _pieces(wanted.path, begun[name]):
            progress(Step(stage="push", item=name, done=done, total=total))
            try:
                _append(link, f"{folder}/{wanted.part(name)}", piece, timeout_s)
            except DeviceError as failure:
                raise DeviceError(
                    f"{failure} ({_mib(done)} of {_mib(total)} MiB had arrived and stay there: "
                    "run the same command again to go on)"
                ) from failure
            done += len(piece)
    _finish(link, folder, missing, timeout_s)
    progress(Step(stage="push", item="", done=total, total=total))
    return Sent(
        files=len(missing),
        kept=len(files) - len(missing),
        sent_bytes=total - resumed,
        resumed_bytes=resumed,
    )


def _make_folders(link: Link, folder: str, files: Mapping[str, Wanted], timeout_s: float) -> None:
    folders = {str(PurePosixPath(folder, name).parent) for name in files}
    done = link.shell(f"mkdir -p {shlex.join(sorted(folders))}", timeout_s)
    if done.code:
        raise DeviceError(
            f"{link.title}: {folder} cannot be made ({done.last_line()}); "
            "name another folder with --device-home"
        )


def _hashes(
    link: Link, folder: str, files: Mapping[str, Wanted], timeout_s: float
) -> dict[str, str]:
    """SHA-256 of those files that are there, by relative path; a changed one is sent anew."""
    words = shlex.join(sorted(files))
    done = link.shell(f"cd {shlex.quote(folder)} && sha256sum {words} 2>/dev/null", timeout_s)
    return {name: digest for digest, name in _pairs(done.out)}


def _pairs(out: bytes) -> Iterator[tuple[str, str]]:
    """First and second column of what sha256sum and wc print."""
    for line in out.decode("utf-8", "replace").splitlines():
        pair = line.split(None, 1)
        if len(pair) == 2:
            yield pair[0], pair[1].lstrip("*")


def _require_room(link: Link, folder: str, needed: int, timeout_s: float) -> None:
    """Source: df in POSIX.1-2017, option -P: available blocks of 1,024 bytes in column 4."""
    done = link.shell(f"df -Pk {shlex.quote(folder)}", timeout_s)
    lines = done.out.decode("utf-8", "replace").splitlines()
    columns = lines[-1].split() if len(lines) > 1 else []
    if len(columns) < 4 or not columns[3].isdigit():
        return  # a device without df says so when it is full
    free = int(columns[3]) << 10
    if free < needed:
        raise DeviceError(
            f"{link.title}: {folder} has {_mib(free)} MiB free, {_mib(needed)} MiB more are "
            "needed; make room, or name another folder with --device-home"
        )


def _begun(
    link: Link, folder: str, missing: Mapping[str, Wanted], timeout_s: float
) -> dict[str, int]:
    """Bytes of each file that a cut transfer left."""
    parts = {wanted.part(name): name for name, wanted in missing.items()}
    words = shlex.join(parts)
    done = link.shell(f"cd {shlex.quote(folder)} && wc -c {words} 2>/dev/null", timeout_s)
    sizes = {parts[name]: int(size) for size, name in _pairs(done.out) if name in parts}
    # Longer than the file: two runs wrote at once. The hash will not hold, and it is sent anew.
    return {name: min(sizes.get(name, 0), one.size_bytes) for name, one in missing.items()}


def _pieces(path: Path, start: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _append(link: Link, part: str, piece: bytes, timeout_s: float) -> None:
    done = link.shell(f"cat >> {shlex.quote(part)}", timeout_s, piece)
    if done.code:
        raise DeviceError(f"{link.title}: {part} cannot be written: {done.last_line()}")


def _finish(link: Link, folder: str, missing: Mapping[str, Wanted], timeout_s: float) -> None:
    """Take whole files into place, and remove what is not whole."""
    here, words = shlex.quote(folder), shlex.join(w.part(name) for name, w in missing.items())
    # An empty file has no piece that would have made it.
    made = "; ".join(f": >> {shlex.quote(w.part(n))}" for n, w in missing.items())
    done = link.shell(f"cd {here} && {{ {made}; }} && sha256sum {words}", timeout_s)
    found = {name: digest for digest, name in _pairs(done.out)}
    whole = {n: w for n, w in missing.items() if found.get(w.part(n)) == w.sha256}
    moves = "".join(f" && mv {shlex.join((w.part(n), n))}" for n, w in whole.items())
    done = link.shell(f"cd {here}{moves}", timeout_s)
    if done.code:
        raise DeviceError(f"{link.title}: {folder} cannot be filled: {done.last_line()}")
    broken = {n: w for n, w in missing.items() if n not in whole}
    if broken:
        link.shell(f"cd {here} && rm -f {shlex.join(w.part(n) for n, w in broken.items())}", 60.0)
        name, wanted = next(iter(broken.items()))
        raise DeviceError(
            f"{link.title}: {folder}/{name} arrived changed (SHA-256 "
            f"{found.get(wanted.part(name), 'unknown')}, needed {wanted.sha256}); it was removed, "
            "run the same command again"
        )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f}"
