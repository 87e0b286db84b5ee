"""Our mamba file against llama.cpp's own converter, with GPT-NeoX's own vocabulary."""

import os
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader

from mllm_export.export.parts import DECODERS
from mllm_export.quantize.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from mamba_originals import write_mamba
from neox_vocabulary import TOKENS, find_neox, write_neox_tokenizer
from test_phi_upstream import contents

pytestmark = pytest.mark.upstream

EXPECTED_DIFFERENCES = {
    "general.name": "upstream makes a title of the folder's name; we write what the family says",
}


@pytest.fixture(
    scope="module", params=["bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
def pair(request, tmp_path_factory, write_gguf, convert_upstream):
    vocabulary = find_neox()
    if vocabulary is None:
        if os.environ.get("MLLM_REQUIRE_UPSTREAM"):
            pytest.fail("build/upstream is missing and MLLM_REQUIRE_UPSTREAM is set")
        pytest.skip("build/upstream is missing; make upstream")
    folder = tmp_path_factory.mktemp("mamba") / "tiny"
    write_neox_tokenizer(folder, vocabulary)
    write_mamba(folder, request.param, rows=TOKENS + 3, vocab_size=TOKENS)
    path = folder.parent / "ours.gguf"
    recipe = load_recipe("f16")
    ours = GGUFReader(write_gguf(folder, path, recipe, DECODERS["mamba"], "bpe"))
    return ours, GGUFReader(convert_upstream(folder, folder.parent / "theirs.gguf"))


def test_tensors_equal_upstreams_bit_for_bit(pair):
    ours, theirs = pair
    expected = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(expected)
    for tensor in ours.tensors:
        other = expected[tensor.name]
        assert tensor.tensor_type == other.tensor_type, tensor.name
        assert tensor.shape.tolist() == other.shape.tolist(), tensor.name
        assert tensor.data.tobytes() == other.data.tobytes(), tensor.name


def test_metadata_differs_only_where_it_is_explained(pair):
    ours, theirs = map(contents, pair)
    differing = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    assert differing == set(EXPECTED_DIFFERENCES)
