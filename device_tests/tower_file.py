"""The protocol of device_tests/towers: how the checks read and run a vision engine's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mllm_export.catalog import Catalog
from mllm_export.device_tests.limit import Kind
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored import Stored
from mllm_export.errors import CheckError
from mllm_export.runtimes.engines import GraphRun, VisionEngine
from mllm_export.spec import ImageSpec, ModelSpec

Embed = Callable[[Floats], Floats]
"""Pixels f32[1, 3, S, S] to embeddings f32[T, D]."""

GraphOpener = Callable[[], GraphRun]


class TowerSeams(Protocol):
    """Tower and projector as a graph that can be entered and left between its layers."""

    def entry(self, prefixes: Sequence[str]) -> str:
        """The value from which everything with weights under `prefixes` starts; "" if several."""

    def states(self, names: Sequence[str], pixels: Floats) -> list[Floats]:
        """Values inside the graph for one tile. Shapes: f32[1, 3, S, S] -> as in the graph."""

    def embed_from(self, name: str, value: Floats) -> Floats:
        """The output for one tile when the value `name` is this. Shapes: -> f32[T, D]."""


class TowerFile(Protocol):
    """One file of device_tests/towers, named as the engine."""

    def read(self, path: Path) -> dict[str, Stored]:
        """Every stored tensor, named and laid out as in the ONNX file."""

    def kind(self, stored: Mapping[str, Stored]) -> Kind:
        """How coarse the file is."""

    def engine(self) -> VisionEngine:
        """What the checks open it with: the device's own engine, or what stands in for it here."""

    def stands_in(self) -> bool:
        """Whether `engine` is not the device's own, so that its time means nothing."""

    def more(self, path: Path, spec: ModelSpec) -> Mapping[str, Callable[[], Embed]]:
        """Further ways to run the same file, each opened only when it is measured."""

    def more_graphs(self, path: Path, image: ImageSpec | None) -> Mapping[str, GraphOpener]:
        """As `more`, for a graph of an encoder alone; see VisionEngine.open_graph."""

    def seams(self, path: Path, spec: ModelSpec) -> TowerSeams:
        """The same file, open between its layers."""

    def takes_pictures(self, path: Path) -> bool:
        """Whether the file is fed pictures of 8 bits, and normalises them itself."""

    def notes(self, path: Path) -> tuple[str, ...]:
        """What a reader of the report should know of it."""


TOWER_FILES: Catalog[TowerFile] = Catalog(
    "mllm_export.device_tests.towers", "TOWER_FILE", "vision engine", CheckError
)
