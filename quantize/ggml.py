"""ggml's own quantizers, called in the shared library that llama-cpp-python installs."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mllm_export.errors import LayoutError

Floats = npt.NDArray[np.float32]
Packed = npt.NDArray[np.uint8]
Stored = npt.NDArray[Any]
"""Values in a checkpoint's dtype: float32, float16, bfloat16."""

_LIBRARY_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")
_MIN_CHUNK_VALUES = 1 << 16
"""Below this a thread costs more than it saves; about 0.1 ms of Q4_0."""
_CHUNKS_A_CORE = 8
_FLOAT_TYPES = {"float16": 1, "bfloat16": 30}
"""numpy's names to ggml's numbers. Source: ggml.h, enum ggml_type."""

_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """Source: ggml.h, struct ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_values", ctypes.c_int64),
        ("block_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _ToFloat),
        ("from_float_ref", ctypes.c_void_p),
    )


def quantize_rows(
    ggml_type: int, rows: Stored, row_bytes: int, importance: Floats | None = None
) -> Packed:
    """Store rows in a ggml type; chunks of rows go to all cores.

    Rows of 16 bits become float32 a chunk at a time, so that no second copy of all stands.

    `importance` is what an error in a column costs; ggml then searches for the steps that cost
    least. Each row is stored by itself, so the bytes do not depend on the chunks.

    Shapes: float[rows, cols], cols whole blocks; f32[cols] -> u8[rows, row_bytes].
    Raises: LayoutError when a value is not finite, or is not once it is stored.
    """
    library = _library()
    count, cols = rows.shape
    packed = np.empty((count, row_bytes), np.uint8)
    costs = None if importance is None else _costs(importance, cols)
    costs_at = None if costs is None else costs.ctypes.data_as(ctypes.c_void_p)

    def store(first: int, stop: int) -> bool:
        # ctypes lets go of the interpreter lock, so the chunks run side by side.
        values = _as_floats(rows[first:stop])
        # ggml's own validation sees the scales alone: a NaN between numbers would pass.
        if not np.isfinite(values).all():
            return False
        source = values.ctypes.data_as(ctypes.c_void_p)
        target = packed[first:stop].ctypes.data_as(ctypes.c_void_p)
        size = (stop - first) * row_bytes
        written = library.ggml_quantize_chunk(
            ggml_type, source, target, 0, stop - first, cols, costs_at
        )
        assert written == size, f"ggml wrote {written} bytes of type {ggml_type}, not {size}"
        return bool(library.ggml_validate_row_data(ggml_type, target, size))

    if not all(_over_chunks(store, count, cols)):
        raise LayoutError(f"{type_name(ggml_type)} cannot hold {_what_overflows(rows)}")
    return packed


def _as_floats(rows: Stored) -> Floats:
    """Contiguous float32 rows; numpy would hold the interpreter lock while it reads bfloat16."""
    ggml_type = _FLOAT_TYPES.get(rows.dtype.name)
    if ggml_type is None:
        return np.ascontiguousarray(rows, dtype=np.float32)
    source = np.ascontiguousarray(rows)
    values = np.empty(rows.shape, np.float32)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (source, values))
    _traits(ggml_type).to_float(*pointers, values.size)
    return values


def _costs(importance: Floats, cols: int) -> Floats:
    costs = np.ascontiguousarray(importance, dtype=np.float32)
    if costs.shape != (cols,) or not np.isfinite(costs).all():
        raise LayoutError(
            f"importance of {list(costs.shape)} for rows of {cols} values; needed: one finite "
            "number for each column"
        )
    return costs


def dequantize_rows(ggml_type: int, packed: Packed, cols: int) -> Floats:
    """What llama.cpp reads back from stored rows.

    Shapes: u8[rows, row_bytes] -> f32[rows, cols].
    """
    to_float = _traits(ggml_type).to_float
    packed = np.ascontiguousarray(packed)
    if not to_float:
        return packed.view(np.float32)  # float32 is the one type ggml has nothing to read with
    count = packed.shape[0]
    rows = np.empty((count, cols), np.float32)

    def load(first: int, stop: int) -> bool:
        source = packed[first:stop].ctypes.data_as(ctypes.c_void_p)
        target = rows[first:stop].ctypes.data_as(ctypes.c_void_p)
        to_float(source, target, (stop - first) * cols)
        return True

    list(_over_chunks(load, count, cols))
    return rows


def type_name(ggml_type: int) -> str:
    """Name of a type as ggml says it, such as `q4_0`."""
    return str(_traits(ggml_type).type_name.decode())


def block_of(ggml_type: int) -> tuple[int, int]:
    """Values and bytes of one block."""
    traits = _traits(ggml_type)
    return int(traits.block_values), int(traits.block_bytes)


def _over_chunks(work: Any, rows: int, cols: int) -> list[bool]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # More chunks than cores: a core that other work shares keeps nobody waiting.
    chunks = max(1, min(_CHUNKS_A_CORE * (cores or 1), rows, rows * cols // _MIN_CHUNK_VALUES))
    if chunks == 1:
        return [work(0, rows)] if rows else []
    bounds = [rows * i // chunks for i in range(chunks + 1)]
    with ThreadPoolExecutor(cores or 1) as pool:
        return list(pool.map(work, bounds[:-1], bounds[1:]))


def _what_overflows(rows: Stored) -> str:
    values = np.asarray(rows, np.float32)
    if not np.isfinite(values).all():
        return "NaN or infinite values"
    return f"a value as large as {np.abs(values).max():g}"


@cache
def _traits(ggml_type: int) -> Any:
    return _library().ggml_get_type_traits(ggml_type).contents


@cache
def _library() -> ctypes.CDLL:
    # llama_cpp is not imported: that would load all of llama.cpp and its backends.
    found = find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise LayoutError("llama-cpp-python is not installed; ggml's quantizers come with it")
    folder = Path(found.origin).parent / "lib"
    path = next((folder / name for name in _LIBRARY_NAMES if (folder / name).is_file()), None)
    if path is None:
        raise LayoutError(
            f"{folder} holds none of {', '.join(_LIBRARY_NAMES)}; install llama-cpp-python again"
        )
    library = ctypes.CDLL(str(path))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        pointer,
        pointer,
        count,
        count,
        count,
        pointer,
    )
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = (ctypes.c_int, pointer, ctypes.c_size_t)
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    library.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    return library
