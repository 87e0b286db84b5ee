"""The hidden folder a bundle grows in: it takes its name when whole, or goes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mllm_export.errors import BuildError
from mllm_export.export.child import os_failure
from mllm_export.export.finished import FINISHED, keep_finished


@contextmanager
def partial_folder(out: Path, needed: int) -> Iterator[Path]:
    """A hidden folder beside `out`, with what a killed run had finished; gone on a failure.

    An interrupted run leaves it where an artifact stands in it. It has no bundle.json, so that
    no loader takes it.

    Raises: BuildError for a folder that exists, one that cannot be written, too little room.
    """
    if out.exists():
        raise BuildError(f"{out} exists; name another folder with -o, or remove it first")
    folder = out.with_name(f".{out.name}.{os.getpid()}.partial")
    keep = False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        kept = _take_abandoned(out, folder)
        _require_room(out.parent, needed - kept)
        yield folder
    except KeyboardInterrupt:
        keep = any(folder.glob(f"{FINISHED}/*.json"))
        raise
    except OSError as failure:
        raise BuildError(os_failure(failure)) from failure
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _take_abandoned(out: Path, folder: Path) -> int:
    """Make the folder, of what a killed run left if there is any; returns the bytes kept."""
    for left in out.parent.glob(f".{out.name}.*.partial"):
        pid = left.name.split(".")[-2]
        if not pid.isdigit() or _is_running(int(pid)):
            continue
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
        raise BuildError(
            f"{parent} has {free >> 20} MiB free, this build needs {needed >> 20} MiB; "
            "make room or name another folder with -o"
        )
