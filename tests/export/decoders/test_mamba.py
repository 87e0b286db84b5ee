"""Mamba's spec, names, fallbacks and refusals."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mllm_export.checkpoint import Checkpoint
from mllm_export.config import Config
from mllm_export.errors import CheckpointError, SpecError, UnsupportedModelError
from mllm_export.export.decoder_plan import plan_decoder_tensors
from mllm_export.export.forecast import kv_cache_bytes
from mllm_export.export.parts import DECODERS
from mllm_export.quantize.recipe import load_recipe
from mllm_export.spec import DecoderSpec

sys.path.insert(0, str(Path(__file__).parent))

from mamba_originals import CONFIG, write_mamba

MAMBA = DECODERS["mamba"]
PUBLISHED = {**CONFIG, "d_model": 2560, "n_layer": 64, "vocab_size": 50277}


def read(**changes):
    return MAMBA.read_spec(Config({**CONFIG, **changes}, "config.json"))


def schemes(spec, recipe):
    sources = {name: name for name in MAMBA.parameters(spec)}
    return {t.name: t for t in plan_decoder_tensors(spec, load_recipe(recipe), sources)}


def test_published_sizes_are_read():
    spec = MAMBA.read_spec(Config(PUBLISHED, "config.json"))
    assert (spec.width, spec.layers, spec.vocab, spec.heads) == (2560, 64, 50280, 0)
    assert spec.state is not None
    assert (spec.state.inner_width, spec.state.time_step_rank) == (5120, 160)
    shapes = MAMBA.parameters(spec).values()
    assert sum(math.prod(shape) for shape in shapes) == 2_768_345_600


def test_every_stored_name_is_a_parameter_or_dropped(tmp_path):
    checkpoint = Checkpoint(write_mamba(tmp_path / "m"))
    spec = MAMBA.read_spec(checkpoint.config)
    assert MAMBA.parameters(spec) == {
        name: shape for name, shape in checkpoint.shapes(False).items() if name != "lm_head.weight"
    }
    assert [drop.pattern for drop in MAMBA.drops(spec)] == ["lm_head.weight"]


def test_the_state_does_not_grow_with_the_context():
    spec = MAMBA.tiny()
    assert kv_cache_bytes(spec, 64) == kv_cache_bytes(spec, 4096) == 2 * (2 * 512 * (3 + 16) * 4)


@pytest.mark.parametrize(("recipe", "most"), [("int4", "Q4_0"), ("q4_k_m", "Q4_K")])
def test_what_sets_the_steps_stays_at_eight_bits_or_more(recipe, most):
    spec = MAMBA.read_spec(Config(PUBLISHED, "config.json"))
    found = schemes(spec, recipe)
    for name in ("ssm_x", "ssm_dt"):
        row = found[f"blk.3.{name}.weight"]
        assert row.scheme == "Q8_0"
        assert "carried on from token to token" in row.note
    assert found["blk.3.ssm_in.weight"].scheme == most
    for kept in ("ssm_a", "ssm_d", "ssm_conv1d.weight", "ssm_dt.bias", "attn_norm.weight"):
        assert found[f"blk.3.{kept}"].scheme == "F32"


def test_at_sixteen_bits_nothing_is_raised():
    found = schemes(MAMBA.tiny(), "f16")
    assert found["blk.0.ssm_dt.weight"].scheme == "F16"
    assert not found["blk.0.ssm_dt.weight"].note


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ssm_cfg": {"layer": "Mamba2"}}, "'layer' is 'Mamba2'"),
        ({"ssm_cfg": {"expand": 4}}, "'expand' is 4"),
        ({"ssm_cfg": {"dt_rank": 7}}, "'dt_rank' is 7"),
        ({"ssm_cfg": {"bias": True}}, "'bias' is True"),
        ({"ssm_cfg": {"conv_bias": False}}, "'conv_bias' is False"),
        ({"rms_norm": False}, "rms_norm and tie_embeddings must be true"),
        ({"tie_embeddings": False}, "rms_norm and tie_embeddings must be true"),
    ],
)
def test_variants_that_llama_cpp_lacks_are_refused(changes, words):
    with pytest.raises(UnsupportedModelError, match=words):
        read(**changes)


def test_a_missing_key_is_named(tmp_path):
    plain = {key: value for key, value in CONFIG.items() if key != "n_layer"}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match="'n_layer'"):
        MAMBA.read_spec(Checkpoint(tmp_path).config)


def test_a_decoder_without_heads_needs_a_state():
    with pytest.raises(SpecError, match="0 heads, no KV heads, state None"):
        replace(MAMBA.tiny(), state=None)
    assert isinstance(MAMBA.tiny(), DecoderSpec)
