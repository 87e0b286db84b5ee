"""Layers of two encoders side by side: each is found in the graph, and named as its own."""

from pathlib import Path

import numpy as np
import pytest

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.coreml_seams import CoremlSeams
from mllm_export.device_tests.diagnosis.graph import TowerGraph
from mllm_export.device_tests.diagnosis.walked import Walked, makers
from mllm_export.device_tests.pictures import scenes
from mllm_export.device_tests.probes import layer_ranges, original_ranges
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.device_tests.tower_file import TowerSeams
from mllm_export.export.artifact import part_reader
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.family import FAMILIES, read_spec
from mllm_export.export.formats import coreml
from mllm_export.export.formats.onnx import write_tower
from mllm_export.export.positions import settled, settled_reader
from mllm_export.export.random_checkpoint import write_random_checkpoint

LAYERS = ("dino.blocks.0.", "dino.blocks.1.", "siglip.blocks.0.", "siglip.blocks.1.")


class Model:
    def __init__(self, folder: Path) -> None:
        checkpoint = Checkpoint(write_random_checkpoint(folder / "m", FAMILIES["cobra"].tiny()))
        reading = read_spec(checkpoint)
        self.tower = part_reader(checkpoint, reading.weights.part("tower"))
        self.projector = part_reader(checkpoint, reading.weights.part("projector"))
        self.vision = reading.spec.vision
        self.walked = Walked(REFERENCES["cobra"](checkpoint))
        with next(iter(scenes(1))).open() as picture:
            self.tile = self.walked.reference.pixels(picture)

    def write(self, path: Path, spoil: str = "") -> Path:
        def read(name: str) -> np.ndarray:
            values = self.tower(name)
            return values * np.float32(1e3) if name.startswith(spoil or "?") else values

        write_tower(path, self.vision, read, self.projector)
        return path

    def write_coreml(self, path: Path, spoil: str = "") -> TowerSeams:
        def read(name: str) -> np.ndarray:
            values = settled_reader(self.vision, self.tower)(name)
            return values * np.float32(1e2) if name.startswith(spoil or "?") else values

        coreml.write_tower(
            path, settled(self.vision), read, self.projector, CoremlOptions(deployment="macOS15")
        )
        return CoremlSeams(path, lambda tile: tile)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("two"))


def test_every_layer_of_both_has_one_value_that_enters_it(model: Model, tmp_path: Path) -> None:
    graph = TowerGraph(model.write(tmp_path / "tower.onnx"))
    assert model.walked.tower_layers == LAYERS
    names = [graph.entry((f"tower.{prefix}",)) for prefix in LAYERS]
    assert all(names)
    assert len(set(names)) == 4
    theirs = model.walked.tower_states(model.tile)
    for prefix, ours in zip(LAYERS, graph.states(names, model.tile), strict=True):
        expected = theirs[prefix]
        made = ours.reshape(expected.shape)
        assert np.abs(made - expected).max() < 1e-4 * np.abs(expected).max()
    joined = graph.states([graph.entry(("projector.",))], model.tile)[0]
    assert joined.shape[-1] == 112


def test_the_layers_of_a_core_ml_program_are_found_too(model: Model, tmp_path: Path) -> None:
    """Of the program as saved, with names of constants in place of tensors'."""
    seams = model.write_coreml(tmp_path / "tower.mlpackage")
    names = [seams.entry((f"tower.{prefix}",)) for prefix in LAYERS]
    joined = seams.entry(("projector.",))
    assert all(names)
    assert len({*names, joined}) == 5
    theirs = model.walked.tower_states(model.tile)
    found = seams.states([*names, joined], model.tile)
    for prefix, ours in zip(LAYERS, found, strict=False):
        expected = theirs[prefix]
        error = np.abs(ours.reshape(expected.shape) - expected).max()
        assert error < 4e-3 * np.abs(expected).max(), prefix
    assert found[-1].shape == (1, 36, 112)
    expected = model.walked.reference.embed(model.tile)[0]
    made = seams.embed_from(joined, found[-1])
    assert np.abs(made - expected).max() < 4e-3 * np.abs(expected).max()


def test_a_wrong_layer_of_a_core_ml_program_is_named(model: Model, tmp_path: Path) -> None:
    seams = model.write_coreml(tmp_path / "tower.mlpackage", "dino.blocks.1.mlp.fc2.weight")
    found = layer_ranges(seams, original_ranges(model.walked, [model.tile]), [model.tile])
    assert [one.name for one in found if one.off_by > 2] == ["fusion"]
    seams = model.write_coreml(tmp_path / "tower.mlpackage", "dino.blocks.0.mlp.fc2.weight")
    found = layer_ranges(seams, original_ranges(model.walked, [model.tile]), [model.tile])
    assert [one.name for one in found if one.off_by > 2] == ["dino.blocks.0", "fusion"]


def test_a_wrong_layer_is_named_with_its_encoder(model: Model, tmp_path: Path) -> None:
    path = model.write(tmp_path / "tower.onnx", spoil="siglip.blocks.0.mlp.fc2.weight")
    found = layer_ranges(
        TowerGraph(path), original_ranges(model.walked, [model.tile]), [model.tile]
    )
    assert [one.name for one in found] == [
        "dino.embeddings", "dino.blocks.0", "siglip.embeddings", "siglip.blocks.0", "fusion",
    ]  # fmt: skip
    wrong = [one.name for one in found if one.off_by > 2]
    assert wrong == ["siglip.blocks.0", "fusion"]


def test_of_one_encoder_the_names_are_those_of_its_layers() -> None:
    order = ("vision_model.encoder.layers.0.", "vision_model.encoder.layers.1.", "features")
    assert list(makers(order).values()) == [
        "embeddings", "vision_model.encoder.layers.0", "vision_model.encoder.layers.1",
    ]  # fmt: skip
    decoder = ("model.layers.0.", "model.layers.1.", "model.norm.")
    assert list(makers(decoder).values()) == ["embeddings", "model.layers.0", "model.layers.1"]
