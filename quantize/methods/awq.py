"""awq: channels that carry large inputs get larger weights, and the layer before smaller outputs.

Source: Lin et al. 2023, arXiv 2306.00978, section 3.2: scales are the channel's mean activation to
a power, which is searched between 0 and 1. Here the activation is the root of the mean square, and
what is minimised is the squared error of the outputs, from the second moments of the inputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mllm_export.quantize.ggml import Floats
from mllm_export.quantize.method import Fold, Layer, output_error

_POWERS = tuple(at / 20 for at in range(20))
"""The authors' grid of 20; 0 leaves the weights as they are."""

_LEAST = 1e-4
"""Scales below this would make weights vanish; the authors' clamp."""


class Awq:
    """One scale per channel for every fold that the decoder declares."""

    needs_inputs = True
    chooses_codes = False

    def choose(self, layer: Layer) -> Layer:
        """The layer with its folds scaled, each by the power that loses least."""
        for fold in layer.folds:
            if all(name in layer.inputs for name in fold.into):
                layer = _scaled(layer, fold, _best(layer, fold))
        return layer


def _best(layer: Layer, fold: Fold) -> Floats:
    activation = np.sqrt(layer.inputs[fold.into[0]].importance)
    candidates = [_scale(activation, power) for power in _POWERS]
    losses = [sum(_loss(layer, name, scale) for name in fold.into) for scale in candidates]
    return candidates[int(np.argmin(losses))]


def _scale(activation: Floats, power: float) -> Floats:
    raised = np.maximum(activation, _LEAST) ** power
    return np.asarray(raised / np.sqrt(raised.max() * raised.min()), np.float32)


def _loss(layer: Layer, name: str, scale: Floats) -> float:
    if name not in layer.storage:
        return 0.0
    weights, inputs = layer.weights[name], layer.inputs[name]
    stored = layer.storage[name].round(weights * scale, inputs.importance / scale**2)
    return output_error(stored / scale - weights, inputs)


def _scaled(layer: Layer, fold: Fold, scale: Floats) -> Layer:
    weights, inputs, scales = dict(layer.weights), dict(layer.inputs), dict(layer.scales)
    for name in fold.into:
        weights[name] = weights[name] * scale
        inputs[name] = inputs[name].scaled(scale)
    for name in fold.out_of:
        made = weights[name]
        weights[name] = made / (scale if made.ndim == 1 else scale[:, None])
        scales[name] = scale
    return replace(layer, weights=weights, inputs=inputs, scales=scales)


METHOD = Awq()
