"""Run one stage in a process of its own, so that its memory goes back when it ends."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from mllm_export.errors import BuildError, DiskFullError, MllmExportError
from mllm_export.progress import Progress, Step, silent

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""A full disk, a full quota, a limit on the size of a file."""
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def run_in_child(
    stage: str, function: Callable[..., T], *arguments: object, progress: Progress = silent
) -> T:
    """`function(*arguments, progress=...)` in a fresh process; returns what it returns.

    Raises: the child's own MllmExportError; BuildError when it died or failed otherwise.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        answer: T = _listen(stage, ours, progress)
        return answer
    except KeyboardInterrupt:
        process.kill()
        raise
    except EOFError:
        process.join()
        raise BuildError(f"{stage}: {_how_it_died(process.exitcode)}") from None
    finally:
        if process.is_alive():
            process.join(timeout=10)
            process.terminate()
        process.join()
        ours.close()


def _listen(stage: str, pipe: Connection, progress: Progress) -> Any:
    while True:
        kind, value = pipe.recv()
        if kind == "step":
            progress(value)
        elif kind == "result":
            return value
        elif kind == "refused":
            raise value
        else:
            raise BuildError(f"{stage} failed: {value}")


def _serve(pipe: Connection, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    # A terminal interrupts every process of a command; the one that was asked ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _be_killed_with_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(step: Step) -> None:
        pipe.send(("step", step))

    try:
        pipe.send(("result", function(*arguments, progress=tell)))
    except MllmExportError as failure:
        pipe.send(("refused", failure))
    except OSError as failure:
        # A full disk is the user's to mend; the traceback would not help.
        pipe.send(("refused", refusal(failure)))
    except Exception:
        pipe.send(("failed", traceback.format_exc()))


def _be_killed_with_parent() -> None:
    """At once, on Linux; the thread below may wait for its turn while a new build goes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_parent() -> None:
    """A killed command takes its stages along; they would write to a folder nobody wants."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def refusal(failure: OSError, path: Path | None = None) -> BuildError:
    """An operating system's refusal as one line with the file and a next step.

    `path` is what was written, for the systems' calls that do not name it.
    """
    file = failure.filename or path
    what = f"{f'{file}: ' if file else ''}{failure.strerror or failure}"
    if failure.errno in _NO_ROOM:
        return DiskFullError(f"{what}; make room, or name another folder with -o")
    hint = "; may this user write there?" if failure.errno in _FORBIDDEN else ""
    return BuildError(f"{what}{hint}")


def _how_it_died(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the machine may be out of memory" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return f"the process ended with code {exit_code} and no answer"
