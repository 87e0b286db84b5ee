"""What the files of a bundle hold, read by others' code: gguf-py for GGUF, mapped ONNX tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mllm_export.device_tests.limit import Kind
from mllm_export.device_tests.originals import Original, standing
from mllm_export.device_tests.reference import Floats, Reader
from mllm_export.device_tests.scheme_bits import weight_bits
from mllm_export.errors import CheckError
from mllm_export.pages import forget_pages

FLOATS = ("F32", "F16", "BF16", "f32", "f16")
"""Schemes whose values are the source's, rounded."""

_PIECE_ROWS = 1024

_FLOAT_BITS, _INT8_BITS, _INT4_BITS = 32, 8, 4
"""Between 8 and 4 bits counts as 4-bit here."""


class Stored(Protocol):
    """One tensor as a file holds it."""

    @property
    def scheme(self) -> str:
        """How it is stored: ggml's word, or a file in quantize/tower_schemes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major, as stored."""

    def values(self, start: int, stop: int) -> Floats:
        """Rows start..stop, dequantized."""


def taken(data: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
    """A copy of some rows, whose pages go back to the file they are mapped from."""
    view = data[start:stop]
    copy = np.array(view)
    if isinstance(view, np.memmap):
        forget_pages(view.ctypes.data, view.nbytes)
    return copy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GgufStored:
    """A tensor of a GGUF file."""

    scheme: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]
    """Memory-mapped; bytes for quantized types."""

    def values(self, start: int, stop: int) -> Floats:
        """Rows start..stop, dequantized by gguf-py."""
        import gguf

        rows = taken(self.data, start, stop)
        kind = gguf.GGMLQuantizationType[self.scheme]
        made = np.asarray(gguf.quants.dequantize(rows, kind), np.float32)
        return made.reshape(stop - start, *self.shape[1:])


def read_gguf(path: Path) -> tuple[dict[str, Stored], dict[str, object]]:
    """Every tensor of a GGUF file, and its metadata without the arrays."""
    import gguf

    reader = gguf.GGUFReader(path)
    tensors: dict[str, Stored] = {
        tensor.name: GgufStored(
            scheme=tensor.tensor_type.name,
            shape=tuple(int(side) for side in reversed(tensor.shape)),
            data=tensor.data,
        )
        for tensor in reader.tensors
    }
    keys = {
        name: field.contents()
        for name, field in reader.fields.items()
        if field.types and field.types[0] != gguf.GGUFValueType.ARRAY
    }
    return tensors, keys


def decoder_kind(stored: Mapping[str, Stored]) -> Kind:
    """By the coarsest scheme of any tensor."""
    return kind_of(one.scheme for one in stored.values())


def kind_of(schemes: Iterable[str]) -> Kind:
    """How coarsely the coarsest of these schemes stores a weight."""
    bits = min((weight_bits(one) or _FLOAT_BITS for one in set(schemes)), default=_FLOAT_BITS)
    if bits > _INT8_BITS:
        return "f16"
    return "int8" if bits == _INT8_BITS else "int4" if bits >= _INT4_BITS else "int2"


def standing_in(
    stored: Mapping[str, Stored], originals: Mapping[str, Original]
) -> dict[str, Original]:
    """The originals in the form that this file has; see `Original.instead`."""
    return standing(originals, {name: tuple(one.shape) for name, one in stored.items()})


def as_published(stored: Mapping[str, Stored], originals: Mapping[str, Original]) -> Reader:
    """The file's own weights under their published names and in their published order."""
    by_source: dict[str, list[str]] = {}
    for name, original in originals.items():
        by_source.setdefault(original.source, []).append(name)

    def read(source: str) -> npt.NDArray[Any]:
        if source not in by_source:
            raise CheckError(f"the file holds nothing of '{source}'")
        names = by_source[source]
        # A published tensor can be cut into several, which hold some of its rows each.
        values = np.empty(originals[names[0]].read().shape, np.float32)
        for name in names:
            if originals[name].transposed:
                whole = stored[name].values(0, stored[name].shape[0])
                values[...] = whole.T.reshape(values.shape)
            else:
                _put_rows(values, stored[name], originals[name])
        return values

    return read


def _put_rows(values: npt.NDArray[Any], stored: Stored, original: Original) -> None:
    count, rows = stored.shape[0], original.rows
    # A piece at a time: dequantizing holds several copies of what it is given.
    for start in range(0, count, _PIECE_ROWS):
        stop = min(count, start + _PIECE_ROWS)
        places = slice(start, stop) if rows is None else rows[start:stop]
        made = stored.values(start, stop)
        made = made if original.unmade is None else original.unmade(made)
        values[places] = made.reshape(stop - start, *values.shape[1:])


def elements(shape: tuple[int, ...]) -> int:
    """Values of a tensor."""
    return math.prod(shape)
