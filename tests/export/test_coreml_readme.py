"""The README of a bundle for Apple's systems: the Swift call says what the model and plan say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.coreml_readme import readme
from mllm_export.export.families.mobilevlm import FAMILY
from mllm_export.export.family import read_spec
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.plan import ArtifactPlan
from mllm_export.spec import ModelSpec


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("readme") / "tiny"
    return read_spec(Checkpoint(write_random_checkpoint(folder, FAMILY.tiny()))).spec


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


def test_braces_of_the_swift_code_match(spec):
    for image_input in (False, True):
        code = re.sub(r'"[^"]*"', "", swift(readme(spec, "ios-arm64", tower(image_input))))
        for opening, closing in ("{}", "()", "[]"):
            assert code.count(opening) == code.count(closing) > 0
        assert "{{" not in code


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


def test_the_prompt_stands_around_the_picture(spec):
    text = readme(spec, "macos-arm64", tower())
    assert repr(spec.prompt.before) in text
    assert repr(f"{spec.prompt.after_image}QUESTION{spec.prompt.after}") in text
    assert text.startswith(f"# {spec.name} for macos-arm64")
