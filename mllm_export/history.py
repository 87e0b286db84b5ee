"""A target's history: one line of JSON for every check."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from mllm_export.bundle import MANIFEST
from mllm_export.errors import CheckError
from mllm_export.hashing import file_sha256
from mllm_export.records import as_plain, from_json, record
from mllm_export.report import Report
from mllm_export.source_file import SourceFile


@record
class HistoryLine:
    """One check."""

    schema: int = 1
    when: str
    """As the caller says it, or the time of the check in UTC."""
    passed: bool
    bundle_sha256: str
    """Of bundle.json, which holds the hash of every other file."""
    sources: tuple[SourceFile, ...]
    report: Report
    """Without examples and tensors: figures, limits, sizes, latency."""


def keep(
    file: Path, report: Report, bundle: Path, sources: tuple[SourceFile, ...], when: str = ""
) -> None:
    """Append a check of a bundle's folder; without `when` at the clock's time in UTC."""
    now = when or datetime.now(timezone.utc).isoformat(timespec="seconds")
    append(file, history_line(report, bundle, sources, now))


def history_line(
    report: Report, bundle: Path, sources: tuple[SourceFile, ...], when: str
) -> HistoryLine:
    """What is worth keeping of a check."""
    return HistoryLine(
        when=when,
        passed=report.passed,
        bundle_sha256=file_sha256(bundle / MANIFEST),
        sources=sources,
        report=_figures(report),
    )


def _figures(report: Report) -> Report:
    """The same report with figures alone."""
    rungs = tuple(replace(rung, examples=(), tensors=()) for rung in report.rungs)
    return replace(report, rungs=rungs, drift=())


def append(file: Path, line: HistoryLine) -> None:
    """One write at the end of the file, so that two checks at a time leave two lines.

    Raises: OSError, with the file as it was, when not the whole line could be written.
    """
    import json

    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_plain(line), ensure_ascii=False, allow_nan=False) + "\n"
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _write_whole(handle, text.encode("utf-8"), file)
    finally:
        os.close(handle)


def _write_whole(handle: int, line: bytes, file: Path) -> None:
    """A nearly full disk takes a part of a write, and half a line would break every later read."""
    written = os.write(handle, line)
    if written == len(line):
        return
    end = os.lseek(handle, 0, os.SEEK_CUR)
    # What another check appended behind it must not be cut off.
    if os.fstat(handle).st_size == end:
        os.ftruncate(handle, end - written)
    reason = f"{written} of the line's {len(line)} bytes could be written; make room, check again"
    raise OSError(errno.ENOSPC, reason, str(file))


def read(file: Path) -> Iterator[HistoryLine]:
    """Every line, oldest first.

    Raises: CheckError naming the line that is broken.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise CheckError(f"history file {file} cannot be read ({failure})") from failure
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield from_json(HistoryLine, line, f"{file}, line {number}", CheckError)


def bundle_sha256_of(path: Path) -> str:
    """SHA-256 of the bundle.json beside or in what was given; empty where there is none."""
    manifest = (path if path.is_dir() else path.parent) / MANIFEST
    return file_sha256(manifest) if manifest.is_file() else ""


def last_good(file: Path, like: Report, bundle_sha256: str = "") -> HistoryLine | None:
    """The last check of the same model, target and recipe that passed, before this very one.

    `bundle_sha256` is given where the report stands in a bundle: such a report is the build's, with
    seconds that no line has, so the lines of that bundle are known by their hash.

    None when this very check is the first of its kind in the file.

    Raises: CheckError when no such check passed at all.
    """
    this = _figures(like)
    key = (like.model, like.family, like.target, like.recipe)
    found: HistoryLine | None = None
    first = False
    for line in read(file):
        one = line.report
        if not line.passed or (one.model, one.family, one.target, one.recipe) != key:
            continue
        if one == this or (bundle_sha256 and line.bundle_sha256 == bundle_sha256):
            first = True
        else:
            found = line
    if found is None and not first:
        raise CheckError(
            f"{file} holds no passed check of {like.model}, {like.recipe}, for {like.target}; "
            "append one with: mllm-export check BUNDLE --against CKPT --history FILE"
        )
    return found
