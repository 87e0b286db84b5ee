from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_original import write_original
from torch import nn

from mllm_export.checkpoint import INSIDE, Checkpoint
from mllm_export.device_tests.reference import REFERENCES, Forced
from mllm_export.device_tests.references import _fill
from mllm_export.device_tests.references._projectors import PROJECTORS
from mllm_export.device_tests.references.mobilevlm import mobilevlm_reference
from mllm_export.errors import CheckError
from mllm_export.export.part_module import projector_module
from mllm_export.export.parts import PROJECTORS as EXPORTED
from mllm_export.spec import IMAGE_ID

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    return Image.fromarray(values)


def whole_logits(decoder: nn.Module, ids: tuple[int, ...], images: tuple) -> np.ndarray:
    """transformers' own LlamaForCausalLM on the spliced sequence, nothing shared or packed."""
    table = decoder.get_input_embeddings()
    waiting = iter(images)
    rows = [
        torch.from_numpy(next(waiting)) if one == IMAGE_ID else table(torch.tensor([one]))
        for one in ids
    ]
    with torch.no_grad():
        return decoder(inputs_embeds=torch.cat(rows)[None]).logits[0].numpy()


def test_embeddings_are_those_of_the_whole_clip_and_projector(reference, original) -> None:
    modules = original[1]
    pixels = reference.pixels(picture())
    with torch.no_grad():
        states = modules["tower"](torch.from_numpy(pixels), output_hidden_states=True)
        expected = modules["projector"](states.hidden_states[-2][:, 1:]).numpy()
    assert reference.embed(pixels).shape == (1, 144, 64)
    np.testing.assert_allclose(reference.embed(pixels), expected, rtol=1e-5, atol=1e-5)


def test_packed_logits_are_those_of_each_sequence_alone(reference, original) -> None:
    image, other = reference.embed(np.concatenate([reference.pixels(picture())] * 2))
    other = other * np.float32(0.5)
    asked = [("What is it?", (image,)), ("How many?", (image,)), ("x", (other,)), ("hello", ())]
    asked += [("two", (image, other)), ("two", (other, image)), ("How many?", (image,))]
    sequences = [
        Forced(ids=tuple(reference.prompt_ids(q, len(i))), images=i, rows=3 + at)
        for at, (q, i) in enumerate(asked)
    ]
    found = reference.logits(sequences)
    for sequence, rows in zip(sequences, found, strict=True):
        expected = whole_logits(original[1]["decoder"], sequence.ids, sequence.images)
        np.testing.assert_allclose(rows, expected[-sequence.rows :], rtol=1e-4, atol=1e-4)


def test_rows_that_reach_into_the_image_are_given_too(reference, original) -> None:
    image = reference.embed(reference.pixels(picture()))[0]
    ids = tuple(reference.prompt_ids("x", 1))
    expected = whole_logits(original[1]["decoder"], ids, (image,))
    (rows,) = reference.logits([Forced(ids=ids, images=(image,), rows=len(expected))])
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4)


def test_layers_that_are_refilled_give_what_resident_ones_give(
    reference, original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fill, "RESIDENT_BYTES", 0)
    refilled = mobilevlm_reference(Checkpoint(original[0]))
    assert reference.resident
    assert not refilled.resident
    pixels = reference.pixels(picture())
    assert (refilled.embed(pixels) == reference.embed(pixels)).all()
    asked = [Forced(ids=(1, 300, 301), images=(), rows=2)]
    assert (refilled.logits(asked)[0] == reference.logits(asked)[0]).all()


def test_the_prompt_is_the_authors_and_the_pieces_are_tokenized_apart(reference) -> None:
    tokenizer = reference._tokenizer
    before = tokenizer(f"{SYSTEM} USER: ").input_ids
    after = tokenizer("\nWhat? ASSISTANT:").input_ids
    assert reference.prompt_ids("What?", 1) == [*before, IMAGE_ID, *after[1:]]
    assert reference.prompt_ids("<image>\nWhat?", 1) == reference.prompt_ids("What?", 1)
    assert before[0] == after[0] == 1


def test_text_only_prompts_are_one_piece(reference) -> None:
    expected = reference._tokenizer(f"{SYSTEM} USER: Hi ASSISTANT:").input_ids
    assert reference.prompt_ids("Hi", 0) == expected


def test_a_wide_picture_is_padded_with_the_truncated_mean_colour(reference) -> None:
    made = reference.pixels(Image.new("RGB", (60, 20), (255, 255, 255)))
    top = made[0, :, 0, 0]
    np.testing.assert_allclose(top, [-0.0113, -0.0112, -0.0013], atol=1e-4)


def test_v1_takes_the_tower_of_its_own_folder_and_v2_the_copy_inside(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 96, 96), np.float32)
    for kind, changes in (("ldpnet", True), ("ldpnetv2", False)):
        folder = tmp_path / kind / "checkpoint"
        write_original(folder, kind)
        inside = mobilevlm_reference(Checkpoint(folder, INSIDE if kind == "ldpnet" else None))
        before = mobilevlm_reference(Checkpoint(folder)).embed(pixels)
        double_positions(folder.parent / "clip-tiny")
        after = mobilevlm_reference(Checkpoint(folder)).embed(pixels)
        assert (np.abs(after - before).max() > 1e-3) == changes
        if kind == "ldpnetv2":
            assert (inside.embed(pixels) == before).all()


def double_positions(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["vision_model.embeddings.position_embedding.weight"] *= 2
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("published", "name"),
    [("ldpnet", "ldp"), ("ldpnetv2", "ldpv2"), ("mlp2x_gelu", "mlp2x_gelu"), ("linear", "linear")],
)
def test_the_exporters_projector_agrees_with_the_independent_one(published: str, name: str) -> None:
    torch.manual_seed(0)
    ours = PROJECTORS[published](32, 64).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.4)
    state = {n: p.detach().numpy() for n, p in ours.named_parameters()}
    catalog = EXPORTED[name]
    theirs = projector_module(catalog, catalog.spec(32, 64, 576), state.__getitem__)
    features = torch.randn(1, 576, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(features), theirs(features), rtol=1e-4, atol=1e-4)


def test_other_weights_can_take_the_decoders_place(reference) -> None:
    def doubled_head(name: str) -> np.ndarray:
        values = np.asarray(reference._parts.read(name), np.float32)
        return values * 2 if name == "lm_head.weight" else values

    asked = [Forced(ids=(1, 300, 301), images=(), rows=2)]
    plain, doubled = reference.logits(asked)[0], reference.logits(asked, doubled_head)[0]
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-5)


def test_a_sequence_with_another_number_of_images_is_refused(reference) -> None:
    image = np.zeros((144, 64), np.float32)
    asked = Forced(ids=(1, IMAGE_ID, 5), images=(image, image), rows=1)
    with pytest.raises(CheckError, match="1 images in the ids, 2 given"):
        reference.logits([asked])
    assert len(reference.logits([replace(asked, images=(image,))])) == 1


def test_every_family_has_a_reference() -> None:
    from mllm_export.export.family import FAMILIES

    assert REFERENCES.names() == FAMILIES.names()
