"""ONNX files run everywhere, so the checks use the device's own engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mllm_export.device_tests.diagnosis.graph import TowerGraph
from mllm_export.device_tests.limit import Kind
from mllm_export.device_tests.stored import Stored
from mllm_export.device_tests.stored_tower import read_onnx, tower_kind
from mllm_export.device_tests.tower_file import Embed, GraphOpener, TowerSeams
from mllm_export.runtimes.engines import VISION_ENGINES, VisionEngine
from mllm_export.spec import ImageSpec, ModelSpec


class OnnxFile:
    """tower.onnx."""

    def read(self, path: Path) -> dict[str, Stored]:
        """Its initializers."""
        return read_onnx(path)

    def kind(self, stored: Mapping[str, Stored]) -> Kind:
        """By the coarsest scheme of any weight."""
        return tower_kind(stored)

    def engine(self) -> VisionEngine:
        """ONNX Runtime."""
        return VISION_ENGINES["onnx"]

    def stands_in(self) -> bool:
        """Never."""
        return False

    def more(self, path: Path, spec: ModelSpec) -> Mapping[str, Callable[[], Embed]]:
        """None."""
        del path, spec
        return {}

    def more_graphs(self, path: Path, image: ImageSpec | None) -> Mapping[str, GraphOpener]:
        """None."""
        del path, image
        return {}

    def seams(self, path: Path, spec: ModelSpec) -> TowerSeams:
        """Its nodes, run by ONNX Runtime. Raises: CheckError when it is no ONNX model."""
        del spec
        return TowerGraph(path)

    def takes_pictures(self, path: Path) -> bool:
        """Never."""
        del path
        return False

    def notes(self, path: Path) -> tuple[str, ...]:
        """None."""
        del path
        return ()


TOWER_FILE = OnnxFile()
