"""The LLM inside a multimodal checkpoint against llama.cpp's own converter.

Upstream has no class for MobileVLM, so it reads the checkpoint as the LLaMA it is: the same
files, with `architectures` and `model_type` renamed. It leaves out tower and projector by name.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader

import mllm_export.export.reference as reference
from mllm_export.checkpoint import Checkpoint
from mllm_export.export.artifact import Work
from mllm_export.export.artifacts.gguf import write_decoder_stage
from mllm_export.export.family import FAMILIES, read_spec
from mllm_export.export.make_plan import make_plan
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.export.target import load_target
from mllm_export.progress import silent
from mllm_export.quantize.recipe import load_recipe

pytestmark = pytest.mark.upstream

EXPECTED_DIFFERENCES = {
    "general.name": "upstream makes a title of the folder's name; we name the family",
    "tokenizer.ggml.unknown_token_id": "upstream leaves it to llama.cpp's default, which is ours",
    "tokenizer.chat_template": "published in the authors' code alone; upstream finds none",
}
TRAINED = Path(reference.__file__).parent / "data" / "checkpoint"


@pytest.fixture(scope="module", params=["random", "reference"])
def pair(request, tmp_path_factory, convert_upstream):
    folder = tmp_path_factory.mktemp("mobilevlm")
    if request.param == "random":
        source = write_random_checkpoint(folder / "tiny-mobilevlm", FAMILIES["mobilevlm"].tiny())
    else:
        source = TRAINED
    as_llama = folder / "as-llama"
    shutil.copytree(source, as_llama)
    config = json.loads((as_llama / "config.json").read_text())
    config.update(architectures=["LlamaForCausalLM"], model_type="llama")
    (as_llama / "config.json").write_text(json.dumps(config))
    theirs = convert_upstream(as_llama, folder / "theirs.gguf")
    return GGUFReader(write_ours(source, folder / "ours.gguf")), GGUFReader(theirs)


def write_ours(source, path):
    reading = read_spec(Checkpoint(source))
    plan = make_plan(reading, load_target("linux-x86_64"), load_recipe("f16"))
    work = Work(plan=plan, reading=reading, source=(source, None), folder=path.parent)
    write_decoder_stage(work, replace(plan.artifact("decoder"), path=path.name), silent)
    return path


def test_every_tensor_equals_upstreams_bit_for_bit(pair):
    ours, theirs = pair
    expected = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(expected)
    for tensor in ours.tensors:
        assert tensor.tensor_type == expected[tensor.name].tensor_type, tensor.name
        assert tensor.data.tobytes() == expected[tensor.name].data.tobytes(), tensor.name


def test_metadata_differs_only_where_it_is_explained(pair):
    found = [
        {key: (f.types, f.contents()) for key, f in reader.fields.items() if "GGUF." not in key}
        for reader in pair
    ]
    ours, theirs = found
    differing = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    assert differing == set(EXPECTED_DIFFERENCES)
