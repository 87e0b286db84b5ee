"""What a quantization method gets and gives: a layer's float weights and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mllm_export.catalog import Catalog
from mllm_export.errors import RecipeError
from mllm_export.quantize.ggml import Floats, Packed
from mllm_export.quantize.grid import Grid
from mllm_export.quantize.inputs import Inputs
from mllm_export.records import record


class Storage(Protocol):
    """How one weight will be stored, as far as a method may ask."""

    def round(self, rows: Floats, importance: Floats | None) -> Floats:
        """What is read back of rows that are stored. Shapes: f32[rows, cols] -> the same."""

    def fit(self, rows: Floats, importance: Floats | None) -> Grid | None:
        """Scales for the rows and their even steps; None where the steps are not even."""


@record
class Fold:
    """A scale per channel may go from the inputs of some linear maps into what makes them."""

    into: tuple[str, ...]
    """Weights whose columns are multiplied: all that read these inputs."""
    out_of: tuple[str, ...]
    """Vectors, or weights by rows, that are divided: a norm, or the linear map before."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """Codes on a grid: values that the layout must not round again."""

    grid: Grid
    codes: Packed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """The weights of one layer, by published name."""

    weights: Mapping[str, Floats]
    """f32[rows, cols], or f32[width] for norms and biases."""
    inputs: Mapping[str, Inputs]
    """Empty where nothing was calibrated."""
    storage: Mapping[str, Storage]
    """Of the weights that are quantized."""
    folds: tuple[Fold, ...] = ()
    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    scales: Mapping[str, Floats] = field(default_factory=dict)
    """By the name of what was divided: f32[channels] it was divided by."""

    def importance(self, name: str) -> Floats | None:
        """Mean squares of a weight's inputs, f32[cols], if calibration saw them."""
        return self.inputs[name].importance if name in self.inputs else None


class Method(Protocol):
    """A file in quantize/methods: chooses values; knows no file format."""

    needs_inputs: bool
    """Whether it works on calibrated inputs."""
    chooses_codes: bool
    """Whether it picks a layout's steps one by one, so that they have to be even."""

    def choose(self, layer: Layer) -> Layer:
        """The layer with other values, none of them further from what the inputs ask."""


METHODS: Catalog[Method] = Catalog(
    "mllm_export.quantize.methods", "METHOD", "quantization method", RecipeError
)


def output_error(error: Floats, inputs: Inputs) -> float:
    """Squared error of a weight's outputs over all positions: trace of E G E^T.

    Shapes: f32[rows, cols].
    """
    return float(np.einsum("ij,ij->", error @ inputs.gram, error, dtype=np.float64))
