"""The README of a bundle for Apple's systems: the Swift call says what the model and plan say."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import llama_cpp
import pytest
import tree_sitter_swift
from tree_sitter import Language, Parser

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.coreml_readme import readme
from mllm_export.export.family import FAMILIES, read_spec
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.plan import ArtifactPlan
from mllm_export.spec import ModelSpec


def read(folder: Path, family: str) -> ModelSpec:
    made = write_random_checkpoint(folder / "tiny", FAMILIES[family].tiny())
    return read_spec(Checkpoint(made)).spec


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read(tmp_path_factory.mktemp("readme"), "mobilevlm")


@pytest.fixture(scope="module", params=FAMILIES.names())
def any_spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read(tmp_path_factory.mktemp("readme"), request.param)


def tower(image_input: bool = False, scheme: str = "pal4") -> ArtifactPlan:
    return ArtifactPlan(
        role="tower",
        path="tower.mlpackage",
        format="coreml",
        scheme=scheme,
        tensors=(),
        deployment="iOS18",
        image_input=image_input,
    )


def swift(text: str) -> str:
    (block,) = re.findall(r"```swift\n(.*?)```", text, flags=re.S)
    return str(block)


def test_the_call_has_the_models_own_sizes(spec):
    text = readme(spec, "ios-arm64", tower())
    code = swift(text)
    tokens, width = spec.image_tokens, spec.decoder.width
    assert f"let count = Int32({tokens})" in code
    assert f"llama_batch_init(count, {width}, 1)" in code
    assert f"batch.embd + row * {width}" in code
    assert 'output.featureValue(for: "image_embeds")' in code
    assert f"must be at least {tokens}" in text
    assert "`tower.mlpackage` | vision tower and projector, pal4 weights | Core ML, iOS18" in text


SWIFT = Parser(Language(tree_sitter_swift.language()))


def is_swift(code: str) -> bool:
    return not SWIFT.parse(code.encode()).root_node.has_error


@pytest.mark.parametrize("image_input", [False, True])
def test_the_call_is_swift(any_spec, image_input):
    code = swift(readme(any_spec, "ios-arm64", tower(image_input)))
    assert is_swift(code)
    for was, becomes in (("throws ->", "throws"), ("defer {", "defer"), ("try MLD", "try try = ")):
        assert was in code
        assert not is_swift(code.replace(was, becomes))


def test_the_call_uses_what_llama_cpp_has(any_spec):
    """Functions with as many arguments, and fields of a batch, as the library that is checked."""
    code = swift(readme(any_spec, "ios-arm64", tower()))
    calls = dict(re.findall(r"\b(llama_\w+)\(([^()]*)\)", code))
    assert set(calls) == {"llama_batch_init", "llama_batch_free", "llama_decode"}
    for name, given in calls.items():
        assert len(getattr(llama_cpp, name).argtypes) == len(given.split(",")), name
    fields = set(re.findall(r"\bbatch\.(\w+)", code))
    assert {"embd", "pos", "logits"} < fields
    assert fields <= {name for name, *_ in llama_cpp.llama_batch._fields_}


def test_the_prompt_is_fed_in_the_models_own_order(any_spec):
    text = readme(any_spec, "macos-arm64", tower())
    block = text.split("where the one before it ended:\n\n")[1].split("\n\n")[0]
    lines = [line.strip() for line in block.splitlines()]
    ids, tokens = "  ->  ids", any_spec.image_tokens
    told = "".join(ast.literal_eval(line.removesuffix(ids)) for line in lines if ids in line)
    places = {line: at for at, line in enumerate(lines)}
    picture = places[f"the picture  ->  {tokens} embeddings"]
    before = sum(
        len(ast.literal_eval(line.removesuffix(ids))) for line in lines[:picture] if ids in line
    )
    whole = any_spec.prompt.text("QUESTION")
    assert told == whole.replace("<image>", "")
    assert before == whole.index("<image>")
    assert lines[0].startswith("the id ") == any_spec.tokenizer.add_bos


def test_a_state_is_kept_where_nothing_can_be_cut_back(any_spec):
    told = "llama_state_seq_get_data" in readme(any_spec, "macos-arm64", tower())
    assert told == (any_spec.decoder.state is not None)
    assert hasattr(llama_cpp, "llama_state_seq_get_data")


def test_a_tensor_is_fed_normalised_and_a_picture_as_it_is(spec):
    image = spec.encoders[0].image
    as_tensor = readme(spec, "ios-arm64", tower())
    assert f"MLMultiArray of Float16, [1, 3, {image.size_px}, {image.size_px}]" in as_tensor
    assert "(value / 255 - mean) / std with mean [" in as_tensor
    assert all(f"{value:.8g}" in as_tensor for value in (*image.mean, *image.std))
    assert '"pixel_values": pixel_values]' in swift(as_tensor)
    as_picture = readme(spec, "ios-arm64", tower(image_input=True))
    assert "MLFeatureValue(pixelBuffer: pixel_values)" in swift(as_picture)
    assert "kCVPixelFormatType_32BGRA" in as_picture
    assert "The model takes the picture itself and normalises it." in as_picture


@pytest.mark.parametrize(
    ("fit", "words"), [("pad", "Pad to a square with RGB (122, 116, 104)"),
                       ("crop", "Resize the shorter side, then cut the centre"),
                       ("stretch", "Resize both sides")],
)  # fmt: skip
def test_preprocessing_is_told_as_the_spec_has_it(spec, fit, words):
    encoder = spec.encoders[0]
    other = replace(encoder, image=replace(encoder.image, fit=fit))
    text = readme(replace(spec, encoders=(other,)), "ios-arm64", tower())
    assert words in text
    assert f"bicubic resampling to {encoder.image.size_px} x {encoder.image.size_px}" in text


def test_the_title_names_model_and_target(spec):
    assert readme(spec, "macos-arm64", tower()).startswith(f"# {spec.name} for macos-arm64")
