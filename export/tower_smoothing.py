"""Outlying activations moved into the weights behind a norm, before 8 bits have to hold them.

    norm(x) = z * gamma + beta          z * (gamma / s) + beta / s
    norm(x) @ W                   ->    (norm(x) / s) @ (s * W)

Factors are powers of two, so that both sides are equal to the last bit: what is gained or lost
comes from quantization alone, and the stored tensors can be held against the published ones.
Source: Xiao and others, SmoothQuant (arXiv:2211.10438), equation 4, with strength 0.5.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mllm_export.export.tower_pieces import products
from mllm_export.export.tower_ranges import Floats

if TYPE_CHECKING:
    from onnx import ModelProto

STRENGTH = 0.5
"""Share of the difficulty that goes from activations to weights."""

NOTE = "smoothed: "
"""Stands before the name of a norm's weight in the file's metadata; the value is JSON."""

_LARGEST_EXPONENT = 8
"""A channel that never fires asks for no endless factor."""


def smooth(
    model: ModelProto, wanted: Collection[str], peaks: Mapping[str, Floats]
) -> dict[str, str]:
    """Fold factors into every LayerNormalization that feeds 8-bit products alone.

    Returns: what to note in the file, for each norm that was changed, so that `unsmoothed` can
    give the published values back.
    """
    tensors = {entry.name: entry for entry in model.graph.initializer}
    found = products(model, wanted)
    notes: dict[str, str] = {}
    for norm in [n for n in model.graph.node if n.op_type == "LayerNormalization"]:
        behind = [node for node in found if node.input[0] == norm.output[0]]
        if not behind or len(behind) != _readers(model, norm.output[0]) or len(norm.input) < 3:
            continue
        weights = [node.input[1] for node in behind]
        exponents = _exponents(peaks[norm.output[0]], [_values(tensors[w]) for w in weights])
        factors = np.exp2(exponents).astype(np.float32)
        for name in norm.input[1:3]:
            _store(tensors[name], _values(tensors[name]) / factors)
        for name in weights:
            _store(tensors[name], _values(tensors[name]) * factors[:, None])
        note = {"exponents": exponents.tolist(), "norm": list(norm.input[1:3]), "products": weights}
        notes[NOTE + norm.input[1]] = json.dumps(note)
    return notes


def unsmoothed(notes: Mapping[str, str]) -> dict[str, npt.NDArray[np.float32]]:
    """What to multiply each stored tensor's rows by, to have the published values, by name."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    for key, text in notes.items():
        if key.startswith(NOTE):
            note = json.loads(text)
            factors = np.exp2(np.asarray(note["exponents"], np.float32))
            found.update(dict.fromkeys(note["norm"], factors))
            found.update(dict.fromkeys(note["products"], 1 / factors))
    return found


def _exponents(peak: Floats, weights: list[Floats]) -> npt.NDArray[np.int32]:
    """Shapes: f32[D], f32[D, N] for each product -> i32[D]."""
    tops = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    tiny = np.finfo(np.float32).tiny
    logs = STRENGTH * np.log2(np.maximum(peak, tiny))
    logs -= (1 - STRENGTH) * np.log2(np.maximum(tops, tiny))
    logs -= np.median(logs)  # a common factor changes nothing
    exponents = np.clip(np.rint(logs), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return exponents.astype(np.int32)


def _readers(model: ModelProto, value: str) -> int:
    read = [name for node in model.graph.node for name in node.input]
    return [*read, *(one.name for one in model.graph.output)].count(value)


def _values(entry: object) -> Floats:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(entry), np.float32)


def _store(entry: object, values: Floats) -> None:
    from onnx import numpy_helper

    name = entry.name  # type: ignore[attr-defined]  # a TensorProto
    entry.CopyFrom(numpy_helper.from_array(values, name))  # type: ignore[attr-defined]
