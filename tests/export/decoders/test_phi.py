"""Phi-2's spec from either generation of config, and what is refused by name."""

import numpy as np
import pytest
from phi_originals import CONFIG, old_config

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.decoders.phi import deinterleave
from mllm_export.export.parts import DECODERS

PHI = DECODERS["phi"]
PHI_2 = {
    **CONFIG,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "partial_rotary_factor": 0.4,
    "vocab_size": 51200,
}
"""Source: microsoft/phi-2, config.json."""


def config(**changes):
    kept = {k: v for k, v in {**PHI_2, **changes}.items() if v != "absent"}
    return Config(kept, "config.json")


def test_phi_2_in_both_generations_of_config_is_one_spec():
    new = PHI.read_spec(config())
    old = PHI.read_spec(Config(old_config(PHI_2), "config.json"))
    assert (new.layout, old.layout) == ("phi", "phi-msft")
    assert (new.head_dim, new.rotary_dim, new.mlp_width) == (80, 32, 10240)
    for name in ("width", "layers", "heads", "kv_heads", "mlp_width", "vocab", "context_tokens"):
        assert getattr(new, name) == getattr(old, name)
    assert (new.norm_eps, new.rope_theta, new.rotary_dim) == (1e-5, 10000.0, old.rotary_dim)


def test_parameters_of_phi_2_add_up_to_the_published_number():
    for layout in (config(), Config(old_config(PHI_2), "config.json")):
        shapes = PHI.parameters(PHI.read_spec(layout)).values()
        assert sum(int(np.prod(shape)) for shape in shapes) == 2_779_683_840


def test_keys_that_4_36_did_not_write_have_its_defaults():
    lean = config(num_key_value_heads="absent", rope_theta="absent", qk_layernorm="absent")
    assert PHI.read_spec(lean) == PHI.read_spec(config())


def test_transformers_5_keeps_the_rotary_share_among_the_rope_parameters():
    new = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}
    moved = config(rope_parameters=new, partial_rotary_factor="absent", rope_theta="absent")
    assert PHI.read_spec(moved) == PHI.read_spec(config())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"hidden_act": "gelu"}, UnsupportedModelError, "'hidden_act' is 'gelu'; llama.cpp's"),
        ({"qk_layernorm": True}, UnsupportedModelError, "'qk_layernorm' is true"),
        ({"tie_word_embeddings": True}, UnsupportedModelError, "'tie_word_embeddings' is true"),
        ({"rope_scaling": {"rope_type": "linear"}}, UnsupportedModelError, "'rope_scaling'"),
        ({"rope_scaling": {"type": "dynamic"}}, UnsupportedModelError, "'rope_scaling'"),
        ({"partial_rotary_factor": 0.01}, CheckpointError, "turn 0 values"),
        ({"num_attention_heads": 7}, CheckpointError, "2560 is not a multiple of 7 heads"),
        ({"intermediate_size": "absent"}, CheckpointError, "'intermediate_size' is missing"),
        ({"num_hidden_layers": 0}, CheckpointError, "'num_hidden_layers' is 0"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(changes, error, words):
    with pytest.raises(error, match=words):
        PHI.read_spec(config(**changes))


def test_names_of_a_phi_3_or_an_older_phi_are_in_no_layout():
    for name in ("model.layers.0.self_attn.qkv_proj.weight", "layers.1.mixer.Wqkv.weight"):
        with pytest.raises(UnsupportedModelError, match=r"none of Phi's published layouts.*phi-ms"):
            PHI.read_spec(config(), {name, "model.norm.weight"})


def test_packed_rows_of_4_36_go_head_by_head():
    rows = np.arange(12).reshape(12, 1)  # 2 heads of 2: q0 q0 k0 k0 v0 v0 q1 q1 ...
    found = [deinterleave(2, part, [rows]).ravel().tolist() for part in range(3)]
    assert found == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_every_parameter_goes_into_tensors_of_its_shape():
    for layout in ("phi", "phi-interleaved", "phi-msft"):
        from mllm_export.export.decoders._phi_layouts import LAYOUTS, _sign

        spec = PHI.read_spec(config(), {_sign(LAYOUTS[layout])})
        tensors = PHI.tensors(spec)
        assert len({t.name for t in tensors}) == len(tensors)
        assert {s for t in tensors for s in t.sources} == set(PHI.parameters(spec))
        assert {"output.bias", "output_norm.bias"} <= {t.name for t in tensors}


def test_tiny_is_a_spec_that_k_quants_can_hold():
    spec = PHI.tiny()
    assert all(t.shape[-1] % 256 == 0 for t in PHI.tensors(spec) if len(t.shape) > 1)
    assert 0 < spec.rotary_dim < spec.head_dim
