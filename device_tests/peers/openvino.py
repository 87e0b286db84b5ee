"""The bundle's tower through OpenVINO; it has no decoder to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from mllm_export.bundle import open_bundle
from mllm_export.device_tests.peer import Ask, Errand, Opened, Peer, Spent
from mllm_export.errors import CheckError
from mllm_export.runtimes.preprocess import preprocess
from mllm_export.spec import ImageSpec


class OpenVino:
    """A compiled tower."""

    def __init__(self, tower: Any, image: ImageSpec) -> None:
        """It is compiled."""
        self._tower = tower
        self._image = image

    def answer(self, ask: Ask, tokens: int) -> Spent:
        """Preprocessing is ours; only the tower's time is OpenVINO's."""
        del tokens
        start = perf_counter()
        pixels = preprocess(ask.picture, self._image)
        cut = perf_counter()
        self._tower(pixels)
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
    yield OpenVino(compiled, bundle.manifest.model.encoders[0].image)


PEER = Peer(title="OpenVINO, the tower alone", open=open_openvino, package="openvino")
