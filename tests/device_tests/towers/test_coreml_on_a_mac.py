"""What the checks do on a Mac, with coremltools' model replaced by one that the evaluator runs.

Only `MLModel` is stood in for: it loads on Apple's systems alone. Everything from the engine's
choice to what is handed to `predict` is the real thing, for every family's tower.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools
import numpy as np
import pytest
from PIL import Image

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.pictures import scenes
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.device_tests.references._embedders import load_original
from mllm_export.device_tests.tower_file import TOWER_FILES
from mllm_export.export.artifact import part_reader
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.embedder_graphs import EmbedderSource
from mllm_export.export.embedder_parts import embedder_for
from mllm_export.export.family import FAMILIES, read_spec
from mllm_export.export.formats.coreml import write_graph, write_tower
from mllm_export.export.mil_evaluator import Evaluator
from mllm_export.export.mil_program import read_program
from mllm_export.export.mil_program import read_spec as read_package
from mllm_export.export.positions import settled, settled_reader
from mllm_export.export.random_checkpoint import write_random_checkpoint
from tests.export.embedders import tiny_embedders as tiny


class MLModel:
    """Takes what coremltools' own takes: arrays, or pictures where the port is an image."""

    opened: list[tuple[str, Any]]

    def __init__(self, path: str, compute_units: Any) -> None:
        self.opened.append((path, compute_units))
        self._package = Path(path)
        self._evaluator = Evaluator(read_program(self._package), "float16")

    def get_spec(self) -> Any:
        return read_package(self._package)

    def predict(self, given: dict[str, Any]) -> dict[str, Any]:
        pictures = self._evaluator.program.image_inputs
        assert all(isinstance(given[name], Image.Image) for name in pictures)
        arrays = {
            name: np.asarray(one, np.float32).transpose(2, 0, 1)[None] if name in pictures else one
            for name, one in given.items()
        }
        return dict(self._evaluator.outputs(arrays))


def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Every package that is opened from now on, and for which units."""
    MLModel.opened = []
    monkeypatch.setattr(coremltools.models, "MLModel", MLModel)
    for module in ("runtimes.vision.coreml", "device_tests.towers.coreml"):
        monkeypatch.setattr(f"mllm_export.{module}.sys", SimpleNamespace(platform="darwin"))
    return MLModel.opened


@pytest.mark.parametrize("image_input", [False, True], ids=["pixels", "picture"])
def test_an_image_tower_alone_gives_embedding_and_patches(
    image_input: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tiny.siglip(tmp_path / "m"))
    entry = embedder_for(checkpoint.config)
    assert entry is not None
    source = EmbedderSource(folder=checkpoint.path, reading=entry.read(checkpoint))
    path, image = tmp_path / "image.mlpackage", source.reading.spec.encoder.image
    options = CoremlOptions(deployment="macOS15", image_input=image_input)
    write_graph(path, source.graph("tower"), source.readers("tower"), options)
    original = load_original(checkpoint)
    with next(iter(scenes(1))).open() as picture:
        pixels = original.pixels(picture)
    on_a_mac(monkeypatch)
    file = TOWER_FILES["coreml"]
    made = file.engine().open_graph(path, image, 1)(pixels)
    expected = {
        "image_embeds": original.embed_image(pixels), "patches": original.embed_patches(pixels)
    }  # fmt: skip
    assert set(made) == set(expected)
    for name, values in expected.items():
        assert np.linalg.norm(made[name][0] - values) < 1e-2 * np.linalg.norm(values), name
    others = file.more_graphs(path, image)
    assert set(others) == {"program in float32", "program in float16"}
    for name, values in others["program in float16"]()(pixels).items():
        np.testing.assert_array_equal(values, made[name])


@pytest.mark.parametrize("image_input", [False, True], ids=["pixels", "picture"])
@pytest.mark.parametrize("family", FAMILIES.names())
def test_the_tower_rung_runs_core_ml_itself(
    family: str, image_input: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(write_random_checkpoint(tmp_path / "m", FAMILIES[family].tiny()))
    reading = read_spec(checkpoint)
    vision, path = reading.spec.vision, tmp_path / "tower.mlpackage"
    write_tower(
        path,
        settled(vision),
        settled_reader(vision, part_reader(checkpoint, reading.weights.part("tower"))),
        part_reader(checkpoint, reading.weights.part("projector")),
        CoremlOptions(deployment="macOS15", image_input=image_input),
    )
    reference = REFERENCES[family](checkpoint)
    with next(iter(scenes(1))).open() as picture:
        pixels = reference.pixels(picture)
    opened = on_a_mac(monkeypatch)
    monkeypatch.setenv("MLLM_COREML_UNITS", "CPU_AND_NE")
    file = TOWER_FILES["coreml"]
    assert not file.stands_in()
    made = file.engine().open(path, reading.spec, 1).embed(pixels)
    assert opened == [(str(path), coremltools.ComputeUnit.CPU_AND_NE)]
    expected = reference.embed(pixels).reshape(made.shape)
    assert np.linalg.norm(made - expected) < 1e-2 * np.linalg.norm(expected)
    assert "run by Core ML" in file.notes(path)[0]
    # The evaluator runs beside it, in both widths; in float16 it is what stood in above.
    others = file.more(path, reading.spec)
    assert set(others) == {"program in float32", "program in float16"}
    np.testing.assert_array_equal(others["program in float16"]()(pixels), made)
    assert len(opened) == 1
