"""The on-device runtime as one file that Python runs: what a device is given."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import mllm_export
import mllm_export.runtimes

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold: the same code gives the same bytes."""

_MAIN = """\
import sys

if sys.version_info < (3, 10):
    sys.exit("error: Python there is %d.%d, needed: 3.10 or later" % sys.version_info[:2])

from mllm_export.runtimes.runner import main

sys.exit(main(sys.argv[1:]))
"""
"""Run as `python runtime.zip`, so that no folder where it happens to start comes first."""


def write_runtime(path: Path) -> Path:
    """The shared words and runtimes/, without stages, commands or reports."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, "__main__.py", _MAIN.encode("ascii"))
        for name, file in sorted(_modules()):
            _add(archive, name, file.read_bytes())
    return path


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _ZIP_EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)


def _modules() -> Iterator[tuple[str, Path]]:
    words = Path(mllm_export.__file__).parent
    for file in words.glob("*.py"):
        yield f"mllm_export/{file.name}", file
    runtimes = Path(mllm_export.runtimes.__path__[0])
    for file in runtimes.rglob("*.py"):
        yield f"mllm_export/runtimes/{file.relative_to(runtimes).as_posix()}", file
