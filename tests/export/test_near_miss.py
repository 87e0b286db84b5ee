"""A checkpoint that nobody claims is answered with what is there and what is missing."""

from __future__ import annotations

import json

import pytest

from mllm_export.checkpoint import Checkpoint
from mllm_export.config import Config
from mllm_export.errors import UnsupportedModelError
from mllm_export.export.family import identify
from mllm_export.export.near_miss import near_miss

CLIP = "openai/clip-vit-large-patch14-336"
CASES = {
    "a Phi-3 decoder behind LLaVA's own parts": (
        {"model_type": "llava_phi3", "hidden_size": 3072, "mm_projector_type": "mlp2x_gelu",
         "mm_vision_tower": CLIP},
        ("family of model_type 'llava_phi3' is missing (one file in export/families)",
         "vision tower 'clip_vision_model' is there", "projector 'mlp2x_gelu' is there",
         "decoder 'phi3' is missing (known: ", "one file in export/decoders"),
    ),
    "a projector that nobody has": (
        {"model_type": "llava_llama2", "hidden_size": 4096, "mm_projector_type": "mlp3x_gelu",
         "mm_vision_tower": CLIP},
        ("projector 'mlp3x_gelu' is missing (known: ", " ldp, ldpv2, linear, mlp2x_gelu; one file "
         "in export/projectors)"),
    ),
    "MobileVLM's word for LDP": (
        {"model_type": "x", "mm_projector_type": "ldpnetv2"}, ("projector 'ldpnetv2' is there",),
    ),
    "transformers' nesting": (
        {"model_type": "idefics9", "vision_config": {"model_type": "dinov9"},
         "text_config": {"model_type": "llama"}},
        ("vision tower 'dinov9' is missing (known: clip_vit", "decoder 'llama' is there"),
    ),
    "a language model alone": (
        {"model_type": "phi3", "hidden_size": 3072}, ("decoder 'phi3' is missing",),
    ),
    "a tower in a folder of its own": (
        {"model_type": "x", "mm_vision_tower": "some/tower"},
        ("its vision tower 'some/tower' is told by that folder's config",),
    ),
    "nothing at all": ({}, ("family of model_type '(none)' is missing",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_part_is_told_as_there_or_missing(case):
    config, sentences = CASES[case]
    found = near_miss(Config(config, "config.json"))
    for sentence in sentences:
        assert sentence in found
    assert "\n" not in found


def test_what_is_there_is_not_called_missing():
    config = Config({"model_type": "llava_phi3", "mm_projector_type": "linear"}, "config.json")
    assert "projector 'linear' is missing" not in near_miss(config)


def test_inspect_says_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CASES["a language model alone"][0]))
    with pytest.raises(UnsupportedModelError, match=r"no family known here claims it.*'phi3'"):
        identify(Checkpoint(tmp_path))
