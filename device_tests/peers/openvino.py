"""The bundle's tower through OpenVINO; it has no decoder to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from mllm_export.bundle import open_bundle
from mllm_export.device_tests.peer import Ask, Errand, Opened, Peer, Spent
from mllm_export.errors import CheckError
from mllm_export.pixels import tiles_of
from mllm_export.runtimes.preprocess import preprocess_inputs
from mllm_export.spec import VisionSpec


class OpenVino:
    """A compiled tower."""

    def __init__(self, tower: Any, vision: VisionSpec) -> None:
        """It is compiled."""
        self._tower = tower
        self._vision = vision

    def answer(self, ask: Ask, tokens: int) -> Spent:
        """Preprocessing is ours; only the tower's time is OpenVINO's."""
        del tokens
        start = perf_counter()
        pixels = preprocess_inputs(ask.picture, self._vision.image_inputs)
        tiles = tiles_of(pixels, self._vision.input_shapes)
        cut = perf_counter()
        for tile in tiles:
            self._tower(tile)
        return Spent(preprocess_ms=1000 * (cut - start), tower_ms=1000 * (perf_counter() - cut))


@contextmanager
def open_openvino(errand: Errand) -> Iterator[Opened]:
    """Raises: CheckError where the tower is no ONNX graph."""
    import openvino

    bundle = open_bundle(errand.files.bundle, verify=False)
    tower = bundle.path("tower")
    if tower.suffix != ".onnx":
        raise CheckError(f"{tower.name}: OpenVINO reads ONNX towers only")
    compiled = openvino.Core().compile_model(
        tower, "CPU", {"INFERENCE_NUM_THREADS": errand.threads, "PERFORMANCE_HINT": "LATENCY"}
    )
    yield OpenVino(compiled, bundle.manifest.model.vision)


PEER = Peer(title="OpenVINO, the tower alone", open=open_openvino, package="openvino")
