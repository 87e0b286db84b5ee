"""Importance matrices: what an error in each input column of a weight costs.

Source: llama.cpp, tools/imatrix/imatrix.cpp, save_imatrix, and common/imatrix-loader.cpp: for each
weight the squares of its inputs summed over positions, and how many positions were summed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from mllm_export.errors import CalibrationError
from mllm_export.quantize.ggml import Floats

_SUMS, _COUNTS, _MEANS = ".in_sum2", ".counts", ".in_sum"
"""Squares, positions, and the plain sums that upstream's tool adds for its statistics."""

_DATASETS, _CHUNKS, _CHUNK = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """Squared inputs of one weight."""

    sums: Floats
    """f32[cols]: summed over positions."""
    count: int
    """Positions."""

    @property
    def importance(self) -> Floats:
        """Their mean; 1 where nothing was seen, as llama-quantize takes it."""
        if not self.count:
            return np.ones_like(self.sums)
        return np.asarray(self.sums / np.float32(self.count), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imatrix:
    """Entries by GGUF name of the weight, and where they come from."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunk_tokens: int
    """Positions that upstream's tools count as one chunk."""

    @property
    def chunks(self) -> int:
        """Chunks that the longest entry was summed over."""
        longest = max((entry.count for entry in self.entries.values()), default=0)
        return -(-longest // self.chunk_tokens)

    def importance(self) -> dict[str, Floats]:
        """What ggml's quantizers take, by GGUF name."""
        return {name: entry.importance for name, entry in self.entries.items()}

    def require_model(self, columns: Mapping[str, int], where: str) -> None:
        """Hold the names and sizes against a model's; `columns` by GGUF name.

        Raises: CalibrationError for the matrix of another model.
        """
        for name, entry in self.entries.items():
            if name not in columns:
                raise CalibrationError(
                    f"{where}: holds '{name}', which this model does not have; is it the "
                    "importance matrix of another model?"
                )
            if entry.sums.shape != (columns[name],):
                raise CalibrationError(
                    f"{where}: '{name}' has {entry.sums.size} columns, this model's has "
                    f"{columns[name]}; is it the importance matrix of another model?"
                )


def write_imatrix(path: Path, matrix: Imatrix) -> None:
    """A GGUF file that llama-quantize and llama-imatrix read."""
    import gguf

    writer = gguf.GGUFWriter(path, "")
    # The constructor writes an architecture, which an importance matrix has not.
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array(_DATASETS, list(matrix.datasets))
    writer.add_uint32(_CHUNKS, matrix.chunks)
    writer.add_uint32(_CHUNK, matrix.chunk_tokens)
    for name in sorted(matrix.entries):
        entry = matrix.entries[name]
        writer.add_tensor(name + _SUMS, entry.sums.reshape(1, -1).astype(np.float32))
        writer.add_tensor(name + _COUNTS, np.array([[entry.count]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """A matrix of ours or of upstream's tool, in its GGUF format or the one before.

    Raises: CalibrationError for a file that is none, or holds other than finite sums.
    """
    try:
        head = path.open("rb").read(4)
        matrix = _read_gguf(path) if head == b"GGUF" else _read_legacy(path)
    except (OSError, ValueError, KeyError, IndexError, struct.error) as failure:
        raise CalibrationError(
            f"{path}: not an importance matrix ({failure}); give one that llama-imatrix wrote, or "
            f"that a build with --calibration left beside decoder.gguf"
        ) from failure
    if not matrix.entries:
        raise CalibrationError(f"{path}: the importance matrix is empty")
    for name, entry in matrix.entries.items():
        if not np.isfinite(entry.sums).all() or (entry.sums < 0).any():
            raise CalibrationError(
                f"{path}: '{name}' holds sums of squares that are negative or no numbers"
            )
    return matrix


def _read_gguf(path: Path) -> Imatrix:
    import gguf

    reader = gguf.GGUFReader(path)
    arrays: dict[str, Any] = {tensor.name: tensor.data for tensor in reader.tensors}
    names = [name.removesuffix(_SUMS) for name in arrays if name.endswith(_SUMS)]
    paired = {name + end for name in names for end in (_SUMS, _COUNTS, _MEANS)}
    if not names or not arrays.keys() <= paired:
        raise ValueError("its tensors are not pairs of sums and counts")
    entries = {
        name: Entry(
            sums=np.array(arrays[name + _SUMS], np.float32).ravel(),
            count=round(float(arrays[name + _COUNTS].ravel()[0])),
        )
        for name in names
    }
    fields = reader.fields
    datasets = tuple(fields[_DATASETS].contents() or ()) if _DATASETS in fields else ()
    chunk = int(fields[_CHUNK].contents()) if _CHUNK in fields else 512
    return Imatrix(entries=entries, datasets=datasets, chunk_tokens=chunk)


def _read_legacy(path: Path) -> Imatrix:
    """Source: llama.cpp, common/imatrix-loader.cpp, common_imatrix_load_legacy."""
    file = BytesIO(path.read_bytes())

    def number() -> int:
        (value,) = struct.unpack("<i", file.read(4))
        return int(value)

    def text() -> str:
        size = number()
        data = file.read(size) if 0 <= size <= 1 << 16 else b""
        if len(data) != size:
            raise ValueError("it ends within a name")
        return data.decode("utf-8")

    entries: dict[str, Entry] = {}
    for _ in range(number()):
        name, calls, size = text(), number(), number()
        data = file.read(4 * size) if size > 0 else b""
        if len(data) != 4 * size or not data:
            raise ValueError(f"it ends within '{name}'")
        entries[name] = Entry(sums=np.frombuffer(data, np.float32), count=calls)
    trailing = file.read()
    datasets: tuple[str, ...] = ()
    if len(trailing) > 8:
        datasets = (trailing[8:].decode("utf-8", "replace"),)
    return Imatrix(entries=entries, datasets=datasets, chunk_tokens=1)
