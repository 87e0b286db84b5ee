"""llama.cpp's library: started once, silent, its last complaint kept for our errors."""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache

import llama_cpp

_ERROR = 4  # ggml.h: GGML_LOG_LEVEL_ERROR
_complaints: deque[str] = deque(maxlen=3)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes has no types for it
def _log(level: int, text: bytes, _: object) -> None:
    if level >= _ERROR and (line := text.decode("utf-8", "replace").strip()):
        _complaints.append(line)


@cache
def start() -> None:
    """Start llama.cpp; later calls do nothing.

    The callback is a module's global: llama.cpp keeps its address and nothing else would
    keep it alive.
    """
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def arithmetic() -> str:
    """What the bits of a result depend on: the library and the CPU features it was built for."""
    features = llama_cpp.llama_print_system_info().decode("ascii", "replace")
    return f"llama-cpp-python {llama_cpp.__version__}: {' '.join(features.split())}"


def last_complaint() -> str:
    """The last error lines llama.cpp logged, and forget them."""
    text = "; ".join(_complaints) or "it gave no reason"
    _complaints.clear()
    return text
