"""Encoders say themselves which tower configs are theirs, and in which layouts they come."""

from __future__ import annotations

import pytest

from mllm_export.config import Config
from mllm_export.errors import UnsupportedModelError
from mllm_export.export.encoders.clip_vit import ENCODER as CLIP
from mllm_export.export.parts import ENCODERS
from mllm_export.export.tower_choice import encoder_for, name_prefix


@pytest.mark.parametrize("model_type", ["clip", "clip_vision_model"])
def test_a_clip_config_is_claimed_by_clip_alone(model_type):
    assert encoder_for(Config({"model_type": model_type}, "config.json")) is CLIP


def test_a_tower_nobody_claims_is_named_with_what_would_have_to_be_added():
    with pytest.raises(UnsupportedModelError, match=r"'dinov9'.*known: clip_vit.*export/encoders"):
        encoder_for(Config({"model_type": "dinov9"}, "config.json"))


def test_the_layout_is_told_by_the_names_that_are_there():
    class TwoLayouts:
        prefixes = ("", "visual.trunk.")

    for own in TwoLayouts.prefixes:
        names = [f"tower:{own}a", "lm_head.weight"]
        assert name_prefix(TwoLayouts(), "a", "tower:", names) == f"tower:{own}"
    assert name_prefix(TwoLayouts(), "a", "tower:", []) == "tower:"


@pytest.mark.parametrize("name", ENCODERS.names())
def test_every_encoder_has_a_usual_layout(name):
    assert ENCODERS[name].prefixes
