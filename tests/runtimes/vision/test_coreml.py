"""Core ML's engine: what it does with a prediction, and what it says where there is no Mac."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from mllm_export.errors import EngineError
from mllm_export.runtimes.engines import VISION_ENGINES
from mllm_export.runtimes.vision.coreml import CoremlTower, compute_units, to_picture


class Predicts:
    """Stands where coremltools' MLModel would: that class loads on a Mac alone."""

    def __init__(self, rows):
        self.rows = rows
        self.given = []

    def predict(self, inputs):
        self.given.append(inputs)
        return {"image_embeds": self.rows}


@pytest.fixture
def rows(spec):
    return np.ones((spec.image_tokens, spec.decoder.width), np.float32)


def pixels(spec, tiles=1):
    side = spec.encoders[0].image.size_px
    return np.zeros((tiles, 3, side, side), np.float32)


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here")
def test_elsewhere_than_on_a_mac_it_says_where(tmp_path, spec):
    with pytest.raises(EngineError, match=r"Apple's systems alone, this is .*mllm-export check"):
        VISION_ENGINES["coreml"].open(tmp_path, spec, 1)


def test_tiles_are_embedded_one_after_another(tmp_path, spec, rows):
    model = Predicts(rows)
    made = CoremlTower(tmp_path, spec, model, False).embed(pixels(spec, tiles=2))
    assert made.shape == (2 * rows.shape[0], rows.shape[1])
    assert [given["pixel_values"].shape[0] for given in model.given] == [1, 1]


def test_a_picture_is_given_back_level_by_level(spec):
    image = replace(spec.encoders[0].image, size_px=16)
    levels = np.arange(768).reshape(3, 16, 16) % 256
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (image.mean, image.std))
    tile = ((levels.astype(np.float32) / 255 - mean) / std).astype(np.float32)
    assert (np.asarray(to_picture(tile, image)).transpose(2, 0, 1) == levels).all()


def test_another_models_tower_is_refused(tmp_path, spec, rows):
    with pytest.raises(EngineError, match="is the tower another model's"):
        CoremlTower(tmp_path, spec, Predicts(rows[1:]), False).embed(pixels(spec))
    with pytest.raises(EngineError, match="gave NaN or Inf"):
        CoremlTower(tmp_path, spec, Predicts(rows * np.nan), False).embed(pixels(spec))
    with pytest.raises(EngineError, match=r"pixels are float32\[1, 3, 2, 2\]"):
        CoremlTower(tmp_path, spec, Predicts(rows), False).embed(np.zeros((1, 3, 2, 2), np.float32))


def test_a_closed_tower_says_so(tmp_path, spec, rows):
    tower = CoremlTower(tmp_path, spec, Predicts(rows), False)
    tower.close()
    tower.close()
    with pytest.raises(EngineError, match="closed"):
        tower.embed(pixels(spec))


def test_compute_units_are_chosen_by_name(monkeypatch):
    assert compute_units() == "ALL"
    monkeypatch.setenv("MLLM_COREML_UNITS", "CPU_AND_NE")
    assert compute_units() == "CPU_AND_NE"
    monkeypatch.setenv("MLLM_COREML_UNITS", "GPU")
    with pytest.raises(EngineError, match="MLLM_COREML_UNITS is 'GPU', known: ALL, CPU_AND_NE"):
        compute_units()
