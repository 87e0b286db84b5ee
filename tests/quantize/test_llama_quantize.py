"""Recipes and layouts against llama.cpp's own quantizer, run in its library on a file of ours."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from gguf import GGUFReader

from mllm_export.export.decoder_plan import general_fields, gguf_tensors, plan_decoder_tensors
from mllm_export.export.formats.gguf import write_decoder
from mllm_export.export.parts import DECODERS
from mllm_export.export.random_checkpoint import random_tensor
from mllm_export.quantize.recipe import Recipe, Rule, load_recipe
from mllm_export.spec import RopeScaling

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
FILE_TYPES = {"int4": 2, "int8": 7}
"""Source: llama.h, LLAMA_FTYPE_MOSTLY_Q4_0 and LLAMA_FTYPE_MOSTLY_Q8_0."""


def one_layout(scheme):
    rules = (Rule(tensors="*", scheme=scheme),)
    return Recipe(
        name=scheme, description="", tower_scheme="f32", decoder_scheme=scheme, decoder=rules
    )


def write(path, spec, recipe):
    decoder = DECODERS["llama"]
    shapes = decoder.parameters(spec)
    plan = plan_decoder_tensors(spec, recipe, {name: name for name in shapes})
    tensors = gguf_tensors(spec, plan)
    fields = (
        *general_fields("tiny", recipe.decoder_scheme, tensors),
        *decoder.metadata(spec),
    )
    write_decoder(path, fields, tensors, lambda name: random_tensor(name, shapes[name], 0))
    return path


def llama_quantize(source, target, file_type):
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 2
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert not failed
    return target


@pytest.mark.parametrize("changes", SPECS.values(), ids=list(SPECS))
@pytest.mark.parametrize("name", FILE_TYPES)
def test_types_and_bytes_equal_llama_quantizes(name, changes, tmp_path):
    spec = replace(DECODERS["llama"].tiny(), **changes)
    source = write(tmp_path / "f32.gguf", spec, one_layout("F32"))
    theirs = GGUFReader(llama_quantize(source, tmp_path / "theirs.gguf", FILE_TYPES[name]))
    ours = GGUFReader(write(tmp_path / "ours.gguf", spec, load_recipe(name)))
    expected = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(expected)
    for tensor in ours.tensors:
        assert tensor.tensor_type == expected[tensor.name].tensor_type, tensor.name
        assert np.array_equal(tensor.data, expected[tensor.name].data), tensor.name
    file_type = ours.fields["general.file_type"].contents()
    assert file_type == theirs.fields["general.file_type"].contents() == FILE_TYPES[name]


@pytest.mark.parametrize(
    ("scheme", "file_type"), [("Q5_0", 8), ("Q5_1", 9), ("Q6_K", 18), ("BF16", 32)]
)
def test_other_layouts_store_the_bytes_of_llama_quantize(scheme, file_type, tmp_path):
    spec = DECODERS["llama"].tiny()
    source = write(tmp_path / "f32.gguf", spec, one_layout("F32"))
    theirs = GGUFReader(llama_quantize(source, tmp_path / "theirs.gguf", file_type))
    ours = GGUFReader(write(tmp_path / "ours.gguf", spec, one_layout(scheme)))
    expected = {t.name: t for t in theirs.tensors if t.name != "output.weight"}
    compared = [t for t in ours.tensors if t.name in expected]
    assert len(compared) == len(ours.tensors) - 1
    for tensor in compared:
        assert tensor.tensor_type == expected[tensor.name].tensor_type, tensor.name
        assert np.array_equal(tensor.data, expected[tensor.name].data), tensor.name
