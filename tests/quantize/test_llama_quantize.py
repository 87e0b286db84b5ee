"""Recipes and layouts against llama.cpp's own quantizer, run in its library on a file of ours."""

from dataclasses import replace

import numpy as np
import pytest
from gguf import GGUFReader

from mllm_export.export.decoder_plan import general_fields, gguf_tensors, plan_decoder_tensors
from mllm_export.export.decoder_values import PlainValues
from mllm_export.export.formats.gguf import write_decoder
from mllm_export.export.parts import DECODERS
from mllm_export.export.random_checkpoint import random_tensor
from mllm_export.quantize.recipe import Recipe, Rule, load_recipe
from mllm_export.spec import RopeScaling
from tests.quantize.upstream_quantize import FILE_TYPES, llama_quantize

LLAMA3 = RopeScaling(
    kind="llama3",
    factor=8.0,
    original_context_tokens=64,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)
SPECS = {
    "untied": {},
    "tied": {"tied_head": True},
    "gqa": {"kv_heads": 2},
    "rows-of-32": {"width": 160, "head_dim": 40, "mlp_width": 96},
    "ragged-rows": {"width": 144, "head_dim": 36, "mlp_width": 100, "tied_head": True},
    "llama3": {"rope_scaling": LLAMA3},
}
DEEP = {"layers": 16, "mlp_width": 256}
"""Enough layers for a first sixteenth."""

WITH_IMATRIX = [name for name in FILE_TYPES if name not in {"int4", "int8", "f16"}]
"""int4 and int8 are llama-quantize's choices without an importance matrix."""


def one_layout(scheme):
    rules = (Rule(tensors="*", scheme=scheme),)
    return Recipe(
        name=scheme, description="", tower_scheme="f32", decoder_scheme=scheme, decoder=rules
    )


def importance_of(spec):
    """Draws for every tensor of a layer; upstream's tool has none for embedding and head."""
    generator = np.random.default_rng(6)
    return {
        tensor.name: generator.lognormal(0, 1.5, tensor.shape[-1]).astype(np.float32)
        for tensor in DECODERS["llama"].tensors(spec)
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }


def write(path, spec, recipe, importance=None):
    decoder = DECODERS["llama"]
    shapes = decoder.parameters(spec)
    sources = {name: name for name in shapes}
    plan = plan_decoder_tensors(spec, recipe, sources, imatrix=bool(importance))
    tensors = gguf_tensors(spec, plan)
    fields = (
        *general_fields("tiny", recipe.decoder_scheme, tensors),
        *decoder.metadata(spec),
    )

    def read(name):
        return random_tensor(name, shapes[name], 0)

    write_decoder(path, fields, tensors, PlainValues(reader=read, matrix=importance or {}))
    return path


def assert_same_types_and_bytes(name, spec, importance, folder):
    source = write(folder / "f32.gguf", spec, one_layout("F32"))
    quantized = llama_quantize(source, folder / "theirs.gguf", FILE_TYPES[name], importance)
    theirs = GGUFReader(quantized)
    ours = GGUFReader(write(folder / "ours.gguf", spec, load_recipe(name), importance))
    expected = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(expected)
    for tensor in ours.tensors:
        assert tensor.tensor_type == expected[tensor.name].tensor_type, tensor.name
        assert np.array_equal(tensor.data, expected[tensor.name].data), tensor.name
    file_type = ours.fields["general.file_type"].contents()
    assert file_type == theirs.fields["general.file_type"].contents() == FILE_TYPES[name]


@pytest.mark.parametrize("changes", SPECS.values(), ids=list(SPECS))
@pytest.mark.parametrize("name", ["f16", "q4_0", "q8_0", "q4_k_m", "q6_k"])
def test_types_and_bytes_equal_llama_quantizes_in_every_shape(name, changes, tmp_path):
    spec = replace(DECODERS["llama"].tiny(), **changes)
    assert_same_types_and_bytes(name, spec, {}, tmp_path)


@pytest.mark.parametrize("name", FILE_TYPES)
def test_types_and_bytes_of_every_recipe_equal_llama_quantizes(name, tmp_path):
    assert_same_types_and_bytes(name, replace(DECODERS["llama"].tiny(), kv_heads=1), {}, tmp_path)


@pytest.mark.parametrize("name", WITH_IMATRIX)
def test_types_and_bytes_equal_llama_quantizes_with_an_importance_matrix(name, tmp_path):
    spec = replace(DECODERS["llama"].tiny(), kv_heads=2)
    assert_same_types_and_bytes(name, spec, importance_of(spec), tmp_path)


@pytest.mark.parametrize("shape", ["rows-of-32", "ragged-rows", "tied"])
@pytest.mark.parametrize("name", ["q4_0", "q8_0", "q4_k_m", "q6_k"])
def test_an_importance_matrix_is_used_after_a_fallback_too(name, shape, tmp_path):
    spec = replace(DECODERS["llama"].tiny(), **SPECS[shape])
    assert_same_types_and_bytes(name, spec, importance_of(spec), tmp_path)


@pytest.mark.parametrize(
    ("name", "with_imatrix"),
    [
        ("q4_k_m", False),
        ("q4_k_s", False),
        ("q3_k_m", False),
        ("iq4_nl", False),
        ("iq4_nl", True),
        ("q4_0", True),
        ("q5_0", True),
    ],
)
def test_layers_that_llama_quantize_treats_better_are_the_same(name, with_imatrix, tmp_path):
    spec = replace(DECODERS["llama"].tiny(), **DEEP)
    recipe, importance = load_recipe(name), importance_of(spec) if with_imatrix else {}
    sources = {tensor: tensor for tensor in DECODERS["llama"].parameters(spec)}
    plan = plan_decoder_tensors(spec, recipe, sources, imatrix=with_imatrix)
    source = write(tmp_path / "f32.gguf", spec, one_layout("F32"))
    theirs = GGUFReader(llama_quantize(source, tmp_path / "t.gguf", FILE_TYPES[name], importance))
    expected = {tensor.name: tensor.tensor_type.name for tensor in theirs.tensors}
    assert {tensor.name: tensor.scheme for tensor in plan} == expected
