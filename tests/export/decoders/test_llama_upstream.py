"""Our float16 file against the one of llama.cpp's own converter, tensor by tensor, key by key."""

import pytest
from gguf import GGUFReader

from mllm_export.quantize.recipe import load_recipe

pytestmark = pytest.mark.upstream

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

CASES = {
    "mha-bfloat16-bin": {},
    "gqa-float32-safetensors": {
        "weights": "safetensors",
        "dtype": "float32",
        "num_key_value_heads": 2,
    },
    "tied-float16-linear": {
        "dtype": "float16",
        "tie_word_embeddings": True,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "llama3-head-dim": {"rope_scaling": LLAMA3, "head_dim": 32, "rope_theta": 500000.0},
    "yarn": {"rope_scaling": YARN},
}

EXPECTED_DIFFERENCES = {
    "general.name": "upstream makes a title of the folder's name; we write what the family says",
    "tokenizer.ggml.unknown_token_id": "upstream leaves it to llama.cpp's default, which is ours",
}


def contents(field):
    return field.types, field.contents()


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def pair(request, tmp_path_factory, llama_folder, write_gguf, convert_upstream):
    folder = llama_folder(tmp_path_factory.mktemp("upstream") / "tiny", **CASES[request.param])
    theirs = convert_upstream(folder, folder.parent / "theirs.gguf")
    ours = write_gguf(folder, folder.parent / "ours.gguf", load_recipe("f16"))
    return GGUFReader(ours), GGUFReader(theirs), CASES[request.param]


def test_tensors_equal_upstreams_bit_for_bit(pair):
    ours, theirs, case = pair
    expected = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(expected)
    if case.get("weights") != "safetensors":  # safetensors files are sorted by name
        assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    for tensor in ours.tensors:
        other = expected[tensor.name]
        assert tensor.tensor_type == other.tensor_type, tensor.name
        assert tensor.shape.tolist() == other.shape.tolist(), tensor.name
        assert tensor.data.tobytes() == other.data.tobytes(), tensor.name


def test_metadata_differs_only_where_it_is_explained(pair):
    ours, theirs, _ = pair
    keys = {k for k in {*ours.fields, *theirs.fields} if not k.startswith("GGUF.")}
    differing = {
        key
        for key in keys
        if key not in ours.fields
        or key not in theirs.fields
        or contents(ours.fields[key]) != contents(theirs.fields[key])
    }
    assert differing == set(EXPECTED_DIFFERENCES)
