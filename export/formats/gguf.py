"""GGUF files, written a slab of rows at a time; the same inputs give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mllm_export.errors import CheckpointError, LayoutError
from mllm_export.export.child import refusal
from mllm_export.export.decoder_plan import StoredTensor
from mllm_export.export.decoder_values import PlainValues, Values
from mllm_export.export.parts import Array, GgufField, GgufTensor, Reader
from mllm_export.pages import forget_weight_files
from mllm_export.progress import Progress, Step, silent
from mllm_export.quantize.ggml import Floats, Packed
from mllm_export.quantize.layout import LAYOUTS

_SLAB_BYTES = 32 << 20
"""Size as float32 of what is packed at once: enough to keep every core busy, little beside a
tensor."""

_ARCHITECTURE = "general.architecture"


def write_decoder(
    path: Path,
    fields: Sequence[GgufField],
    tensors: Sequence[StoredTensor],
    values: Reader | Values,
    progress: Progress = silent,
) -> None:
    """Write the language model's file; see `write_gguf`."""
    write_gguf(path, fields, tensors, values, progress, "decoder")


def write_gguf(
    path: Path,
    fields: Sequence[GgufField],
    tensors: Sequence[StoredTensor],
    values: Reader | Values,
    progress: Progress,
    stage: str,
) -> None:
    """Write keys and tensors in the order given; one tensor is read at a time.

    `values` is a reader where nothing but the checkpoint's own values is stored.

    Raises: BuildError naming the file when it cannot be written, CheckpointError naming a
    tensor whose shape or values do not fit. What was written by then stays for the caller,
    who gave a temporary name, to remove.
    """
    try:
        alignment = _write_header(path, fields, tensors)
        with path.open("ab") as file:
            _pad(file, alignment)
            chosen = PlainValues(reader=values) if callable(values) else values
            slabs = partial(_stored_slabs, chosen=chosen)
            _write_tensors(file, alignment, tensors, slabs, progress, stage)
    except OSError as failure:
        raise refusal(failure, path) from failure


def _write_header(path: Path, fields: Sequence[GgufField], tensors: Sequence[StoredTensor]) -> int:
    import gguf

    (architecture,) = (str(field.value) for field in fields if field.key == _ARCHITECTURE)
    writer = gguf.GGUFWriter(path, architecture)
    for field in fields:
        if field.key != _ARCHITECTURE:
            writer.add_key_value(field.key, field.value, gguf.GGUFValueType[field.kind])
    for stored in tensors:
        _add_tensor(writer, stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    return int(writer.data_alignment)


def _add_tensor(writer: Any, stored: StoredTensor) -> None:
    import gguf
    import numpy as np

    layout = LAYOUTS[stored.scheme]
    writer.add_tensor_info(
        stored.tensor.name,
        stored.tensor.shape,
        np.dtype(np.float32),
        stored.size_bytes,
        raw_dtype=gguf.GGMLQuantizationType(layout.ggml_type),
    )


def _write_tensors(
    file: BinaryIO,
    alignment: int,
    tensors: Sequence[StoredTensor],
    slabs: Callable[[StoredTensor], Iterator[Packed]],
    progress: Progress,
    stage: str,
) -> None:
    total = sum(stored.size_bytes for stored in tensors)
    done = 0
    with _Aside(file) as aside:
        for stored in tensors:
            name = stored.tensor.name
            for slab in slabs(stored):
                progress(Step(stage=stage, item=name, done=done, total=total))
                aside.write(slab.data)
                done += slab.nbytes
            aside.write(bytes(-stored.size_bytes % alignment))
    progress(Step(stage=stage, item="done", done=total, total=total))


class _Aside:
    """Writes in a thread while the next slab is packed; one slab waits at most."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[int] | None = None

    def __enter__(self) -> _Aside:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait()

    def write(self, data: memoryview | bytes) -> None:
        """Raises: OSError of this write or the one before, at the latest on leaving."""
        self._wait()
        self._last = self._thread.submit(self._file.write, data)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()


def _stored_slabs(stored: StoredTensor, chosen: Values) -> Iterator[Packed]:
    """The tensor as the file holds it, a few rows at a time."""
    ready = chosen.packed(stored)
    if ready is not None:
        yield ready
        return
    values = _values(stored.tensor, chosen.read)
    costs = chosen.importance(stored)
    rows = values.reshape(-1, values.shape[-1])
    step = max(1, _SLAB_BYTES // (4 * rows.shape[1]))
    for first in range(0, rows.shape[0], step):
        yield _pack(stored, rows[first : first + step], costs)
        # A mapped embedding is larger than all else that is in hand.
        forget_weight_files()


def _pack(stored: StoredTensor, rows: Array, costs: Floats | None) -> Packed:
    try:
        return LAYOUTS[stored.scheme].pack(rows, costs)
    except LayoutError as failure:
        raise CheckpointError(
            f"tensor '{', '.join(stored.tensor.sources)}': {failure}; if the checkpoint is "
            f"sound, store {stored.tensor.name} in another layout"
        ) from failure


def _values(tensor: GgufTensor, read: Reader) -> Array:
    """The stored values, still in the checkpoint's dtype and mapped where nothing moves them."""
    values = tensor.transform([read(source) for source in tensor.sources])
    if values.shape != tuple(tensor.shape):
        raise CheckpointError(
            f"tensor '{', '.join(tensor.sources)}' gives {list(values.shape)}, "
            f"{tensor.name} must be {list(tensor.shape)}; is config.json another model's?"
        )
    return values


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
