"""Losses that are measured: nothing for what is exact, more for what is coarser, and kept."""

from __future__ import annotations

import pytest

from mllm_export.commands.opening import open_checkpoint
from mllm_export.device_tests import calibration, curve, sensitivity
from mllm_export.device_tests.curve import curve_stage
from mllm_export.export.family import read_spec


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(calibration, "PICTURES", 2)
    patch.setattr(sensitivity, "SEQUENCES", 4)
    patch.setattr(sensitivity, "TOWER_OPTIONS", ("f32", "w4g32"))
    patch.setattr(sensitivity, "DECODER_OPTIONS", ("F16", "Q2_K"))
    patch.setattr(curve, "POINTS", 4)
    checkpoint = open_checkpoint("reference", None)
    source = (checkpoint.path, checkpoint.asked)
    asked = (source, read_spec(checkpoint), "avx2", None, lambda _step: None)
    first = curve_stage(*asked)

    class Never:
        def __init__(self, *_arguments):
            raise AssertionError("measured again")

    patch.setattr(sensitivity, "Sensitivity", Never)
    yield first, asked, patch
    patch.undo()


def test_coarser_storage_loses_more_in_every_group(measured):
    found = {(one.group, one.scheme): one.loss for one in measured[0].options}
    groups = {group for group, _ in found}
    assert groups == {
        "tower", "projector", "token_embd", "output", "blk.0", "blk.1", "blk.2", "blk.3",
    }  # fmt: skip
    for group in groups - {"tower", "projector"}:
        assert found[group, "F16"] < 1e-8 < found[group, "Q2_K"]
    for group in ("tower", "projector"):
        assert found[group, "f32"] == 0.0
        assert found[group, "w4g32"] > 1e-6


def test_both_losses_fall_along_the_frontier_and_end_at_nothing(measured):
    points = measured[0].points
    assert len(points) > 2
    for losses in (
        [one.measured_loss for one in points],
        [one.assignment.predicted_loss for one in points],
    ):
        assert losses == sorted(losses, reverse=True)
    assert points[-1].measured_loss < 1e-6


def test_the_same_files_are_measured_once_and_others_anew(measured):
    first, asked, _ = measured
    assert curve_stage(*asked) == first
    with pytest.raises(AssertionError, match="measured again"):
        curve_stage(*asked[:2], "arm64", *asked[3:])
