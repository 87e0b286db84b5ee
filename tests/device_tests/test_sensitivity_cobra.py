"""Losses of a model with two encoders and no attention: a group for each layer of each encoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests import calibration, sensitivity
from mllm_export.device_tests.sensitivity import Sensitivity
from mllm_export.export import budget_options
from mllm_export.export.family import FAMILIES, read_spec
from mllm_export.export.random_checkpoint import write_random_checkpoint


@pytest.mark.slow
def test_every_layer_of_both_encoders_has_a_loss_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "PICTURES", 2)
    monkeypatch.setattr(sensitivity, "SEQUENCES", 2)
    monkeypatch.setattr(budget_options, "TOWER_OPTIONS", ("f32", "w4g32"))
    monkeypatch.setattr(budget_options, "DECODER_OPTIONS", ("F16", "Q2_K"))
    folder = write_random_checkpoint(tmp_path / "model", FAMILIES["cobra"].tiny())
    checkpoint = Checkpoint(folder)
    measured = Sensitivity(checkpoint, read_spec(checkpoint), "avx2", None, lambda _step: None)
    found = {(one.group, one.scheme): one.loss for one in measured.options(512)}
    measured.close()
    towers = {f"tower.{name}.blocks.{n}" for name in ("dino", "siglip") for n in (0, 1)}
    blocks = {"blk.0", "blk.1", "token_embd"}
    assert {group for group, _ in found} == {*towers, *blocks, "projector"}
    for group in towers:
        assert found[group, "w4g32"] > found[group, "f32"] == 0
    assert len({found[group, "w4g32"] for group in towers}) == 4
    for group in blocks:
        assert found[group, "Q2_K"] > found[group, "F16"]
