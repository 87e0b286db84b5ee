"""The hidden folder a bundle grows in: it takes its name when whole, or goes."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mllm_export.bundle import MANIFEST, growing_name
from mllm_export.errors import BuildError, DiskFullError
from mllm_export.export.child import refusal
from mllm_export.export.finished import forget_finished, keep_finished


@contextmanager
def partial_folder(out: Path, needed: int) -> Iterator[Path]:
    """A hidden folder beside `out`, with what a killed run had finished; gone on a failure.

    An interrupted run and one that found no more room leave it where an artifact stands in it.
    No loader takes a folder of that name.

    Raises: BuildError for a folder that exists, one that cannot be written, too little room.
    """
    if out.exists():
        raise BuildError(f"{out} exists; name another folder with -o, or remove it first")
    folder = out.with_name(growing_name(out.name, os.getpid()))
    kept = 0
    try:
        with _refused_in_words():
            out.parent.mkdir(parents=True, exist_ok=True)
            _require_room(out.parent, needed - _take_abandoned(out, folder))
            yield folder
    except KeyboardInterrupt:
        kept = keep_finished(folder)
        raise
    except DiskFullError as failure:
        kept = keep_finished(folder)
        if not kept:
            raise
        raise DiskFullError(
            f"{failure}. {kept >> 20} MiB that were finished wait in {folder} for the next build"
        ) from failure
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def take_name(folder: Path, out: Path, manifest: str, served: Sequence[Path] = ()) -> None:
    """Have all on the disk, then the manifest, then the folder under its name.

    What only `served` the build goes last: a run that is killed while gigabytes go to the disk
    must not have forgotten what it finished.
    """
    for path in folder.rglob("*"):
        if path.is_file() and path not in served:
            _sync(path)
    for path in served:
        path.unlink()
    forget_finished(folder)
    (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    _sync(folder / MANIFEST)
    folder.rename(out)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _refused_in_words() -> Iterator[None]:
    try:
        yield
    except OSError as failure:
        raise refusal(failure) from failure


def has_leftover(out: Path) -> bool:
    """Whether a killed run left something that the next one takes up."""
    return any(_abandoned(out))


def _abandoned(out: Path) -> Iterator[Path]:
    for left in out.parent.glob(growing_name(glob.escape(out.name), "*")):
        # Of another bundle, whose name begins with this one's, more than a number is left.
        pid = left.name.removeprefix(f".{out.name}.").removesuffix(".partial")
        if pid.isdigit() and not _is_running(int(pid)):
            yield left


def _take_abandoned(out: Path, folder: Path) -> int:
    """Make the folder, of what a killed run left if there is any; returns the bytes kept."""
    for left in list(_abandoned(out)):
        if folder.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.rename(folder)
    folder.mkdir(exist_ok=True)
    return keep_finished(folder)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _require_room(parent: Path, needed: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise DiskFullError(
            f"{parent} has {free >> 20} MiB free, this build needs {needed >> 20} MiB; "
            "make room or name another folder with -o"
        )
