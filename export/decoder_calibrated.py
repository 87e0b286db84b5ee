"""The decoder's values as the plan asks for them, and what calibration leaves beside the file.

`imatrix.gguf` holds what weighed the errors, for upstream's tools and for the checks.
`decoder.folds.safetensors` holds the scales per channel that a method moved from one tensor into
another: `NAME.columns` multiplied a stored tensor's columns, `NAME.rows` divided its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.errors import CalibrationError
from mllm_export.export.decoder_plan import StoredTensor
from mllm_export.export.decoder_values import ChosenValues, PlainValues, Values
from mllm_export.export.parts import DECODERS, Foldable, Reader
from mllm_export.quantize.ggml import Floats
from mllm_export.quantize.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
from mllm_export.quantize.inputs import ObservedLayer
from mllm_export.quantize.method import METHODS

if TYPE_CHECKING:
    from mllm_export.export.artifact import Work

IMATRIX = "imatrix.gguf"
FOLDS = "decoder.folds.safetensors"

CHUNK_TOKENS = 512
"""What upstream's tools count as one chunk: llama-imatrix's default context."""

_DATASET = "pictures and questions through tower, projector and prompt"


@contextmanager
def chosen_values(work: Work, tensors: Sequence[StoredTensor], read: Reader) -> Iterator[Values]:
    """Values for the writer; what was seen and folded is written when the block ends.

    Raises: CalibrationError for a plan that needs calibration where none is given.
    """
    plan = work.plan
    if plan.decoder_importance == "file":
        assert work.calibrated.imatrix is not None
        matrix = read_imatrix(work.calibrated.imatrix)
        yield PlainValues(reader=read, matrix=matrix.importance())
        write_imatrix(work.folder / IMATRIX, matrix)
        return
    methods = [METHODS[name] for name in plan.decoder_methods]
    if not methods and plan.decoder_importance == "none":
        yield PlainValues(reader=read)
        return
    grams = any(method.needs_inputs for method in methods)
    seen: dict[str, Entry] = {}
    observed = _observed(work, tensors, diagonal_only=not grams, seen=seen)
    decoder, spec = DECODERS[plan.spec.decoder.kind], plan.spec.decoder
    folds = partial(decoder.folds, spec) if isinstance(decoder, Foldable) else lambda _layer: ()
    values = ChosenValues(tensors, read, methods, observed, folds)
    yield values
    if seen:
        matrix = Imatrix(entries=seen, datasets=(_DATASET,), chunk_tokens=CHUNK_TOKENS)
        write_imatrix(work.folder / IMATRIX, matrix)
    write_folds(work.folder / FOLDS, values.folded)


def _observed(
    work: Work, tensors: Sequence[StoredTensor], *, diagonal_only: bool, seen: dict[str, Entry]
) -> Iterator[ObservedLayer] | None:
    if work.plan.decoder_importance == "none":
        return None
    if work.calibrated.observe is None:
        raise CalibrationError(
            f"recipe '{work.plan.recipe}' calibrates the decoder, and this build was given no "
            "sequences to calibrate on; build with the command, or pass `calibrated`"
        )
    return recorded(work.calibrated.observe(diagonal_only), tensors, seen)


def recorded(
    observed: Iterator[ObservedLayer], tensors: Sequence[StoredTensor], seen: dict[str, Entry]
) -> Iterator[ObservedLayer]:
    """The layers, with every weight's sums put into `seen` by its name in GGUF.

    Raises: CalibrationError for an input of a weight that the file does not hold.
    """
    names: dict[str, list[str]] = {}
    for one in tensors:
        for source in one.tensor.sources:
            names.setdefault(source, []).append(one.tensor.name)
    for layer in observed:
        for source, inputs in layer.inputs.items():
            if source not in names:
                raise CalibrationError(
                    f"calibration saw the inputs of '{source}', which the decoder's file does not "
                    "hold; do the reference's names differ from the exporter's?"
                )
            for name in names[source]:
                seen[name] = Entry(sums=inputs.sums, count=inputs.count)
        yield layer


def write_folds(path: Path, folded: Mapping[str, Floats]) -> None:
    """Nothing where nothing was folded."""
    from safetensors.numpy import save_file

    if folded:
        save_file({name: np.ascontiguousarray(folded[name]) for name in sorted(folded)}, path)
