"""What activations reach on calibration pictures: per value for ranges, per channel for peaks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mllm_export.export.graph_weights import without_values
from mllm_export.export.parts import Array
from mllm_export.quantize.tower_recipe import TowerRanges

if TYPE_CHECKING:
    from onnx import ModelProto

Floats = npt.NDArray[np.float32]

_BINS = 2048
_QUANTIZED_BINS = 128
_PERCENTILE = 99.999
"""Defaults of onnxruntime.quantization for the first two; the share is that of its own examples
for transformers, whose few outliers carry much."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a piece of the float graph did on the calibration pictures."""

    peaks: dict[str, Floats]
    """Largest magnitude in each channel (the last axis) of a value."""
    ranges: dict[str, tuple[float, float]]
    """Lowest and highest of a value that 8 bits shall hold."""
    outputs: Sequence[Floats]
    """What the piece leaves behind, a picture each."""


def observe(
    model: ModelProto,
    values: Sequence[str],
    pictures: Sequence[Mapping[str, Floats]],
    method: TowerRanges,
) -> Statistics:
    """Run a float piece on every picture's values; one picture's own are in memory at a time."""
    names = list(dict.fromkeys(values))
    session, entries, output = _session(model, names, prepacked=True)
    collector = _collector(method)
    peaks: dict[str, Floats] = {}
    outputs: list[Floats] = []
    for one in pictures:
        made = session.run([output, *names], {entry: one[entry] for entry in entries})
        outputs.append(made[0])
        found = dict(zip(names, made[1:], strict=True))
        for name, array in found.items():
            top = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
            peaks[name] = np.maximum(peaks[name], top) if name in peaks else top
        collector.add(found)
    return Statistics(peaks=peaks, ranges=collector.ranges(), outputs=outputs)


def unseen(output: Floats) -> Statistics:
    """Of a piece that left `output` on the only picture, where nothing has to be known of it."""
    return Statistics(peaks={}, ranges={}, outputs=[output])


def run_piece(model: ModelProto, given: Mapping[str, Floats]) -> list[Floats]:
    """All outputs of one piece, float or quantized, on one picture's values."""
    session, entries, _ = _session(model, (), prepacked=False)
    made: list[Floats] = session.run(None, {entry: given[entry] for entry in entries})
    return made


def _session(
    model: ModelProto, names: Sequence[str], *, prepacked: bool
) -> tuple[Any, list[str], str]:
    """Packed copies of the weights take longer than one run, and move the last bit of a sum."""
    import onnxruntime
    from onnx import TensorProto, helper

    light, values = without_values(model)
    entries = [port.name for port in model.graph.input]
    outputs = [port.name for port in model.graph.output]
    light.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in (*entries, *outputs)
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not prepacked:
        options.add_session_config_entry("session.disable_prepacking", "1")
    _lend(options, light, values)
    session = onnxruntime.InferenceSession(
        light.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session, entries, outputs[0]


def _lend(options: Any, light: ModelProto, values: Mapping[str, Array]) -> None:
    """Give a session its weights beside the message, which would be written and read with them."""
    from onnx import TensorProto
    from onnxruntime import OrtValue

    for entry in light.graph.initializer:
        entry.data_location = TensorProto.EXTERNAL
        entry.external_data.add(key="location", value="lent")
    lent = [OrtValue.ortvalue_from_numpy(array) for array in values.values()]
    options.add_external_initializers(list(values), lent)


class _Extremes:
    """The lowest and the highest there was."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, float]] = {}

    def add(self, values: dict[str, Floats]) -> None:
        for name, array in values.items():
            low, high = self._found.get(name, (np.inf, -np.inf))
            self._found[name] = (min(low, float(array.min())), max(high, float(array.max())))

    def ranges(self) -> dict[str, tuple[float, float]]:
        return self._found


class _Histograms:
    """Ranges that cut rare outliers off, chosen by ONNX Runtime's own calibrator."""

    def __init__(self, method: str) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector

        self._collector = HistogramCollector(
            method=method,
            symmetric=False,
            num_bins=_BINS if method == "percentile" else _QUANTIZED_BINS,
            num_quantized_bins=_QUANTIZED_BINS,
            percentile=_PERCENTILE,
            scenario="same",
        )
        self._any = False

    def add(self, values: dict[str, Floats]) -> None:
        if values:
            with _quiet():
                self._collector.collect({name: [array] for name, array in values.items()})
            self._any = True

    def ranges(self) -> dict[str, tuple[float, float]]:
        if not self._any:
            return {}
        with _quiet():
            found = self._collector.compute_collection_result()
        return {name: (float(one[0]), float(one[1])) for name, one in found.items()}


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """The calibrator prints what it does, where results are expected."""
    return contextlib.redirect_stdout(io.StringIO())


def _collector(method: TowerRanges) -> _Extremes | _Histograms:
    return _Extremes() if method == "minmax" else _Histograms(method)
