"""An original tower whose config leaves out defaults has those of transformers."""

import pytest
from transformers import CLIPVisionConfig, SiglipVisionConfig

from mllm_export.config import Config
from mllm_export.device_tests.reference_towers.clip import TOWER as CLIP
from mllm_export.device_tests.reference_towers.clip import clip_config
from mllm_export.device_tests.reference_towers.siglip import TOWER as SIGLIP

BARE = Config({}, "config.json")


@pytest.mark.parametrize(
    ("tower", "known"), [(CLIP, CLIPVisionConfig()), (SIGLIP, SiglipVisionConfig())]
)
def test_a_bare_config_gives_the_default_width_and_size(tower, known):
    assert tower.width(BARE) == known.hidden_size
    assert set(tower.processor(None, BARE).size.values()) == {known.image_size}


def test_what_a_config_names_is_kept():
    made = clip_config(Config({"patch_size": 14, "layer_norm_eps": 1e-6}, "config.json"))
    other = CLIPVisionConfig(patch_size=14, layer_norm_eps=1e-6)
    assert made.to_dict() == other.to_dict()
