"""The segments of a prompt, cut to what one llama.cpp batch holds."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from mllm_export.records import record
from mllm_export.runtimes.engines import Floats, Segment

Values = npt.NDArray[np.int32] | Floats


@record
class Chunk:
    """Token ids i32[rows] or embeddings f32[rows, D], and what tells them from others."""

    values: Values
    key: bytes

    @property
    def rows(self) -> int:
        """Positions it takes."""
        return len(self.values)


def cut(segments: Sequence[Segment], batch_rows: int) -> Iterator[Chunk]:
    """Chunks of at most `batch_rows`; tokens and embeddings never share one.

    Where a segment is cut depends on that segment alone. So two prompts that begin with the
    same segments begin with the same batches, and llama.cpp computes the same bits for them.
    """
    for segment in segments:
        values: Values
        if isinstance(segment, list):
            kind, values = b"tokens", np.array(segment, np.int32)
        else:
            kind, values = b"embeddings", np.ascontiguousarray(segment, np.float32)
        for row in range(0, len(values), batch_rows):
            part = values[row : row + batch_rows]
            yield Chunk(values=part, key=hashlib.sha256(kind + part.tobytes()).digest())


def make_batch(
    chunk: Chunk, start: int, outputs: npt.NDArray[np.int8]
) -> tuple[llama_cpp.llama_batch, npt.NDArray[np.int32]]:
    """A batch of one sequence at positions start, start + 1, ...

    The batch points into the arrays of `chunk`, into `outputs` and into the positions that
    come with it: all must live until llama.cpp has run it.
    """
    positions = np.arange(start, start + chunk.rows, dtype=np.int32)
    batch = llama_cpp.llama_batch(
        n_tokens=chunk.rows,
        pos=_pointer(positions, ctypes.c_int32),
        logits=_pointer(outputs, ctypes.c_int8),
    )
    if chunk.values.dtype == np.int32:
        batch.token = _pointer(chunk.values, ctypes.c_int32)
    else:
        batch.embd = _pointer(chunk.values, ctypes.c_float)
    return batch, positions


def _pointer(values: npt.NDArray[Any], kind: type[Any]) -> object:
    return values.ctypes.data_as(ctypes.POINTER(kind))
