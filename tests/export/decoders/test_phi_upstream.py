"""Our phi2 file against llama.cpp's own converter, with Phi-2's own vocabulary.

Upstream knows a vocabulary by its hash, so a made-up one would not do.
"""

import os
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader
from phi_originals import write_phi

from mllm_export.export.parts import DECODERS
from mllm_export.quantize.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).parents[1]))

from phi2_vocabulary import find_vocabulary, write_phi2_tokenizer

pytestmark = pytest.mark.upstream

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "vocab_size": 51200,
    "partial_rotary_factor": 0.5,
}
CASES = {
    "split-bfloat16-bin": {"layout": "phi"},
    "split-float32-safetensors": {"layout": "phi", "dtype": "float32", "weights": "safetensors"},
    "packed-float16": {"layout": "phi-msft", "dtype": "float16"},
}
EXPECTED_DIFFERENCES = {
    "general.name": "upstream makes a title of the folder's name; we write what the family says",
}


def contents(reader):
    fields = {key: f for key, f in reader.fields.items() if not key.startswith("GGUF.")}
    return {key: (field.types, field.contents()) for key, field in fields.items()}


def write_folder(folder, **case):
    vocabulary = find_vocabulary()
    if vocabulary is None:
        if os.environ.get("MLLM_REQUIRE_UPSTREAM"):
            pytest.fail("build/upstream is missing and MLLM_REQUIRE_UPSTREAM is set")
        pytest.skip("build/upstream is missing; make upstream")
    write_phi2_tokenizer(folder, vocabulary, whole=True)
    return write_phi(folder, **case, **SIZES)


def write_ours(folder, write_gguf):
    path = folder.parent / "ours.gguf"
    phi = DECODERS["phi"]
    return GGUFReader(write_gguf(folder, path, load_recipe("f16"), phi, "bpe"))


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def pair(request, tmp_path_factory, write_gguf, convert_upstream):
    folder = write_folder(tmp_path_factory.mktemp("phi") / "tiny", **CASES[request.param])
    ours = write_ours(folder, write_gguf)
    if CASES[request.param]["layout"] == "phi-msft":
        give_upstream_its_key(folder)
    return ours, GGUFReader(convert_upstream(folder, folder.parent / "theirs.gguf"))


def give_upstream_its_key(folder):
    """Upstream reads the rotary share alone, which the first release did not write."""
    import json

    config = json.loads((folder / "config.json").read_text())
    config["partial_rotary_factor"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))


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


def test_the_interleaved_layout_gives_the_file_of_the_split_one(tmp_path, write_gguf):
    """Upstream packs its rows as they stand, which is another model; see test_phi_logits."""
    made = {}
    for layout in ("phi", "phi-interleaved"):
        folder = write_folder(tmp_path / layout / "tiny", layout=layout)
        write_ours(folder, write_gguf)
        made[layout] = (folder.parent / "ours.gguf").read_bytes()
    assert made["phi"] == made["phi-interleaved"]
