"""Losses that are measured: nothing for what is exact, more for what is coarser, and kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mllm_export.commands.opening import open_checkpoint
from mllm_export.device_tests import calibration, curve, sensitivity
from mllm_export.device_tests.curve import Budget, curve_stage
from mllm_export.errors import RecipeError
from mllm_export.export import budget_options
from mllm_export.export.family import read_spec
from mllm_export.quantize.budget import pareto

BUDGET = Budget(size_bytes=60 << 20, fixed_bytes=10 << 20, context_tokens=512)
"""More than everything takes, so that the least lossy assignment is the solver's."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(calibration, "PICTURES", 2)
    patch.setattr(sensitivity, "SEQUENCES", 4)
    patch.setattr(budget_options, "TOWER_OPTIONS", ("f32", "w4g32"))
    patch.setattr(budget_options, "DECODER_OPTIONS", ("F16", "Q2_K"))
    patch.setattr(budget_options, "KV_OPTIONS", ("f16", "q4_0"))
    patch.setattr(curve, "POINTS", 4)
    checkpoint = open_checkpoint("reference", None)
    source = (checkpoint.path, checkpoint.asked)
    asked = (source, read_spec(checkpoint), "avx2", None, BUDGET, lambda _step: None)
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
    layers = {f"tower.vision_model.encoder.layers.{at}" for at in range(3)}
    decoder = {"token_embd", "output", "blk.0", "blk.1", "blk.2", "blk.3"}
    assert groups == layers | decoder | {"projector", "kv"}
    for group in decoder:
        assert found[group, "F16"] < 1e-8 < found[group, "Q2_K"]
    for group in layers | {"projector"}:
        assert found[group, "f32"] == 0.0
        assert found[group, "w4g32"] > 1e-6
    assert 0.0 < found["kv", "f16"] < 1e-7 < 1e-5 < found["kv", "q4_0"]


def test_both_losses_fall_along_the_frontier_and_end_at_nothing(measured):
    points = pareto(measured[0].points)
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
    longer = replace(BUDGET, context_tokens=2 * BUDGET.context_tokens)
    with pytest.raises(AssertionError, match="measured again"):
        curve_stage(*asked[:4], longer, asked[5])


def test_what_a_budget_gets_is_measured_as_a_whole(measured):
    first, asked, _ = measured
    budget = BUDGET.size_bytes - BUDGET.fixed_bytes
    fitting = [one for one in first.points if one.assignment.size_bytes <= budget]
    groups = {one.group for one in first.options}
    least = sum(
        min(o.loss for o in first.options if o.group == group and o.size_bytes <= budget)
        for group in groups
    )
    assert any(one.assignment.predicted_loss == pytest.approx(least) for one in fitting)
    poor = replace(BUDGET, size_bytes=1 << 20)
    with pytest.raises(RecipeError, match="cannot be met"):
        curve_stage(*asked[:4], poor, asked[5])
