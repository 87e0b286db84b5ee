"""The plugin that counts instructions, compiled for this machine's qemu."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from mllm_export.device_tests.emulation.cache import entry, run_tool
from mllm_export.hashing import text_sha256

_SOURCE = files("mllm_export.device_tests.emulation") / "icount.c"


def counter_library() -> Path:
    """libicount.so, compiled at the first call."""
    made_of = {"source": text_sha256(_SOURCE.read_text(encoding="utf-8"))}
    return entry("icount", made_of, _compile) / "libicount.so"


def _compile(folder: Path) -> None:
    with as_file(_SOURCE) as source:
        run_tool(
            ("gcc", "-O2", "-shared", "-fPIC", "-o", folder / "libicount.so", source),
            "compiling the instruction counter",
        )
