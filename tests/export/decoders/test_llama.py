"""The LLaMA exporter's reading of configs, and its tensors."""

import numpy as np
import pytest

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, SpecError, UnsupportedModelError
from mllm_export.export.decoders.llama import DECODER, interleave_halves
from mllm_export.export.parts import DECODERS
from mllm_export.spec import RopeScaling

PUBLISHED_3B = {
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    # Left-overs of another trainer, as published with MobileVLM 3B.
    "n_head": 16,
    "n_query_groups": 16,
    "n_embd": 2560,
    "n_layer": 32,
    "block_size": 2048,
    "norm_eps": 1e-5,
    "rope_base": 5000,
    "padded_vocab_size": 32000,
    "rotary_percentage": 0.25,
}


def config(**changes):
    table = {**PUBLISHED_3B, **changes}
    return Config({k: v for k, v in table.items() if v != "absent"}, "config.json")


def test_another_trainers_keys_are_not_read():
    spec = DECODER.read_spec(config())
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (32, 32, 80)
    assert (spec.norm_eps, spec.rope_theta) == (1e-6, 10000.0)


def test_parameter_count_is_the_published_one():
    spec = DECODER.read_spec(config())
    shapes = DECODER.parameters(spec).values()
    assert sum(int(np.prod(shape)) for shape in shapes) == 2_701_560_320


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": "absent"}, ("kv_heads", 32)),
        ({"num_key_value_heads": None}, ("kv_heads", 32)),
        ({"num_key_value_heads": 8}, ("kv_heads", 8)),
        ({"head_dim": 128}, ("head_dim", 128)),
        ({"rope_theta": "absent"}, ("rope_theta", 10000.0)),
        ({"rope_parameters": {"rope_theta": 5e5}}, ("rope_theta", 5e5)),
        ({"tie_word_embeddings": True}, ("tied_head", True)),
        ({"tie_word_embeddings": "absent"}, ("tied_head", False)),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            ("rope_scaling", RopeScaling(kind="linear", factor=2.0)),
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
            ("rope_scaling", RopeScaling(kind="dynamic", factor=4.0)),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32}},
            ("rope_scaling", RopeScaling(kind="yarn", factor=4.0, original_context_tokens=2048)),
        ),
        ({"rope_scaling": {"rope_type": "default"}}, ("rope_scaling", None)),
    ],
)
def test_config_keys_reach_the_spec(changes, expected):
    name, value = expected
    assert getattr(DECODER.read_spec(config(**changes)), name) == value


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"attention_bias": True}, UnsupportedModelError, "'attention_bias' is true"),
        ({"mlp_bias": True}, UnsupportedModelError, "'mlp_bias' is true"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "'hidden_act' is 'gelu'"),
        ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "'partial_rotary_factor' is 0.5"),
        (
            {"rope_scaling": {"type": "longrope", "factor": 2.0}},
            UnsupportedModelError,
            "rope_scaling: key 'rope_type' is 'longrope'",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.5}},
            UnsupportedModelError,
            "'attention_factor' is 1.5",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_slow": 2}},
            UnsupportedModelError,
            "'beta_slow' is 2; the exporter knows YaRN with 1",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}},
            UnsupportedModelError,
            "'truncate' is false",
        ),
        ({"rope_scaling": {"type": "linear"}}, CheckpointError, "'factor' is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, CheckpointError, "at least 1"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            CheckpointError,
            "'low_freq_factor' is missing",
        ),
        ({"rope_theta": -1.0}, CheckpointError, "'rope_theta' is -1"),
        ({"hidden_size": "absent"}, CheckpointError, "'hidden_size' is missing"),
        ({"rms_norm_eps": "absent"}, CheckpointError, "'rms_norm_eps' is missing"),
        ({"num_attention_heads": 7}, CheckpointError, "2560 is not a multiple of"),
        ({"head_dim": 5}, SpecError, "heads of 5 values"),
        ({"num_key_value_heads": 5}, SpecError, "cannot share 5 KV heads"),
        ({"num_hidden_layers": 0}, CheckpointError, "'num_hidden_layers' is 0"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(changes, error, words):
    with pytest.raises(error, match=words):
        DECODER.read_spec(config(**changes))


def test_rows_of_a_head_interleave_its_halves():
    rows = np.arange(8).reshape(8, 1)
    assert interleave_halves(2, [rows]).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_parameter_goes_into_one_tensor_of_its_shape(tied):
    spec = DECODER.read_spec(config(tie_word_embeddings=tied, num_key_value_heads=8))
    parameters = DECODER.parameters(spec)
    tensors = DECODER.tensors(spec)
    assert sorted(s for t in tensors for s in t.sources) == sorted(parameters)
    assert all(t.shape == parameters[t.sources[0]] for t in tensors)
    heads = [t.name for t in tensors if "output.weight" in (t.name, *t.aliases)]
    assert heads == (["token_embd.weight"] if tied else ["output.weight"])


def test_tiny_is_a_spec_that_k_quants_can_hold():
    spec = DECODERS["llama"].tiny()
    assert all(t.shape[-1] % 256 == 0 for t in DECODER.tensors(spec))
