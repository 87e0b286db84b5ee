"""Probes inside the tower: values that are no numbers, and ranges, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np

from mllm_export.device_tests.diagnosis.walked import Walked, makers
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.tower_file import TowerSeams
from mllm_export.errors import CheckError
from mllm_export.records import record

FLOAT16_LARGEST = 65504.0
"""Source: IEEE 754 binary16."""

_FEATURES = "features"
"""What enters the projector."""

_TINY = 1e-6


@record
class LayerRange:
    """What entered one layer of the original, and of the export where its graph shows it."""

    name: str
    """Published prefix of the layer whose output it is; `embeddings` before the first."""
    original: float
    """Largest magnitude."""
    export: float | None = None
    """Of the values that are numbers."""
    bad: int = 0
    """NaN and infinity in the export's."""

    @property
    def off_by(self) -> float:
        """How many times larger or smaller than the original's the export's range is."""
        if self.export is None:
            return 1.0
        ours, theirs = max(self.export, _TINY), max(self.original, _TINY)
        return max(ours / theirs, theirs / ours)


def original_ranges(walked: Walked, tiles: Sequence[Floats]) -> dict[str, float]:
    """Largest magnitude of what enters each layer, by its published prefix, projector last.

    Shapes: f32[1, 3, S, S] each.
    """
    found: dict[str, float] = {}
    for tile in tiles:
        states = walked.tower_states(tile)
        # A reference whose projector is not cut off shows its layers all the same.
        with suppress(CheckError):
            states[_FEATURES] = walked.features(tile)
        for name, values in states.items():
            found[name] = max(found.get(name, 0.0), float(np.abs(values).max()))
    return found


def layer_ranges(
    graph: TowerSeams | None, original: Mapping[str, float], tiles: Sequence[Floats]
) -> tuple[LayerRange, ...]:
    """Both sides, in the order of the layers; the original's alone where there is no graph.

    A state that enters a layer is what the layer before it made, and is named so.
    """
    if graph is None:
        return tuple(_named(original, {}, {}))
    entries = {name: graph.entry((_prefix(name),)) for name in original}
    shown = {name: entry for name, entry in entries.items() if entry}
    largest, bad = dict.fromkeys(shown, 0.0), dict.fromkeys(shown, 0)
    for tile in tiles:
        for name, state in zip(shown, graph.states(list(shown.values()), tile), strict=True):
            finite = np.isfinite(state)
            bad[name] += int(state.size - finite.sum())
            largest[name] = max(largest[name], float(np.abs(state[finite]).max(initial=0)))
    return tuple(_named(original, largest, bad))


def _prefix(name: str) -> str:
    return "projector." if name == _FEATURES else f"tower.{name}"


def _named(
    original: Mapping[str, float], largest: Mapping[str, float], bad: Mapping[str, int]
) -> Iterator[LayerRange]:
    for name, maker in makers(list(original)).items():
        yield LayerRange(
            name=maker,
            original=original[name],
            export=largest.get(name),
            bad=bad.get(name, 0),
        )
