"""The original Cobra of the checks, held against whole modules of timm and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn
from torchvision.transforms import functional as images
from transformers import MambaConfig, MambaForCausalLM

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.reference import REFERENCES, Forced
from mllm_export.device_tests.references import _mamba
from mllm_export.device_tests.stored import as_published
from mllm_export.export.family import FAMILIES
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.spec import IMAGE_ID

TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": ("vit_large_patch14_reg4_dinov2", (0.485, 0.229)),
    "vit_so400m_patch14_siglip_90.webli": ("vit_so400m_patch14_siglip_384", (0.5, 0.5)),
}
SIZES = {
    "vit_large_patch14_reg4_dinov2.lvd142m": {"embed_dim": 64},
    "vit_so400m_patch14_siglip_90.webli": {"embed_dim": 48, "mlp_ratio": 3.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cobra") / "model"
    return write_random_checkpoint(made, FAMILIES["cobra"].tiny())


@pytest.fixture(scope="module")
def reference(folder: Path):
    return REFERENCES["cobra"](Checkpoint(folder))


@pytest.fixture(scope="module")
def state(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    whole = torch.load(folder / "checkpoints" / "latest-checkpoint.pt", weights_only=True)
    return whole["model"]


@pytest.fixture(scope="module")
def decoder(state) -> MambaForCausalLM:
    """transformers' whole model."""
    model = MambaForCausalLM(MambaConfig(hidden_size=256, num_hidden_layers=2, vocab_size=512))
    own = {
        name.removeprefix("llm.").replace("embedding.", "embeddings."): value.float()
        for name, value in state["llm_backbone"].items()
    }
    model.load_state_dict(own, strict=True)
    return model.eval()


def picture(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)
    return Image.fromarray(values)


def test_each_tower_gets_its_own_pixels_of_the_one_picture(reference) -> None:
    found = reference.pixels(picture())
    assert found.shape == (1, 6, 90, 90)
    mode = images.InterpolationMode.BICUBIC
    plain = images.to_tensor(images.resize(picture(), [90, 90], interpolation=mode))
    for at, (_, (mean, std)) in enumerate(TOWERS.values()):
        np.testing.assert_allclose(found[0, 3 * at], (plain[0] - mean) / std, atol=1e-6)


@torch.no_grad()
def test_embeddings_are_those_of_whole_towers_and_projector(reference, folder, state) -> None:
    pixels = np.concatenate([reference.pixels(picture(seed)) for seed in (0, 1)])
    rows = []
    for at, (published, (name, _)) in enumerate(TOWERS.items()):
        own = torch.load(folder.parent / published / "pytorch_model.bin", weights_only=True)
        model = timm.create_model(
            name, num_classes=0, img_size=90, depth=3, num_heads=4, **SIZES[published]
        )
        missing, extra = model.load_state_dict(checkpoint_filter_fn(own, model), strict=False)
        assert all(one.startswith("attn_pool.") for one in missing)
        assert not extra
        given = torch.from_numpy(pixels[:, 3 * at : 3 * at + 3])
        rows.append(model.eval().get_intermediate_layers(given, n={1})[0])
    head = nn.Sequential(
        nn.Linear(112, 448), nn.GELU(), nn.Linear(448, 256), nn.GELU(), nn.Linear(256, 256)
    )
    head.load_state_dict(
        {n.removeprefix("projector."): v.float() for n, v in state["projector"].items()}
    )
    expected = head(torch.cat(rows, 2)).numpy()
    found = reference.embed(pixels)
    assert found.shape == (2, 36, 256)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@torch.no_grad()
def whole_logits(decoder, one: Forced) -> np.ndarray:
    table = decoder.get_input_embeddings()
    waiting = iter(one.images)
    rows = [
        torch.from_numpy(next(waiting)) if token == IMAGE_ID else table(torch.tensor([token]))
        for token in one.ids
    ]
    return decoder(inputs_embeds=torch.cat(rows)[None]).logits[0].numpy()


def sequences(reference) -> list[Forced]:
    image, other = reference.embed(
        np.concatenate([reference.pixels(picture(seed)) for seed in (0, 1)])
    )
    asked = [("What is it?", (image,)), ("x", (other,)), ("hello there", ()), ("", (image, other))]
    return [
        Forced(ids=tuple(reference.prompt_ids(q, len(i))), images=i, rows=3 + at)
        for at, (q, i) in enumerate(asked)
    ]


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "a batch each"])
def test_logits_are_those_of_each_sequence_alone(
    reference, decoder, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    if not together:
        monkeypatch.setattr(_mamba, "_BATCH_BYTES", 1)
    asked = sequences(reference)
    for one, rows in zip(asked, reference.logits(asked), strict=True):
        expected = whole_logits(decoder, one)[-one.rows :]
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4)


class _AsStored:
    """What a file without loss holds."""

    def __init__(self, original) -> None:
        self.shape, self.scheme, self.values = original.shape, "F32", original.values


def test_the_files_tensors_read_back_as_they_were_published(reference) -> None:
    """The convolution with its side of 1, A as its logarithm; so logits with them are the same."""
    originals = reference.decoder_originals()
    stored = {name: _AsStored(one) for name, one in originals.items()}
    assert stored["blk.0.ssm_conv1d.weight"].shape == (512, 4)
    rates = stored["blk.0.ssm_a"].values(0, 512)
    np.testing.assert_allclose(rates, -np.exp(originals["blk.0.ssm_a"].read()), rtol=1e-6)
    read = as_published(stored, originals)
    at = "model.llm_backbone.llm.backbone.layers.0.mixer."
    assert read(f"{at}conv1d.weight").shape == (512, 1, 4)
    np.testing.assert_allclose(read(f"{at}A_log"), originals["blk.0.ssm_a"].read(), atol=1e-6)
    asked = sequences(reference)
    for one, rows in zip(reference.logits(asked), reference.logits(asked, read), strict=True):
        np.testing.assert_allclose(rows, one, rtol=1e-4, atol=1e-4)


def test_the_prompt_is_the_builders_and_the_image_stands_first(reference) -> None:
    tokenizer = reference._tokenizer
    text = "<|user|>\nWhat?<|endoftext|>\n<|assistant|>\n"
    assert reference.prompt_ids(" <image>\nWhat? ") == [IMAGE_ID, *tokenizer(text).input_ids]
    assert reference.prompt_ids("What?", 0) == tokenizer(text).input_ids
    assert 0 in tokenizer(text).input_ids


def test_calibration_sees_every_linear_map_of_a_layer(reference, decoder) -> None:
    asked = sequences(reference)[:2]
    layers = list(reference.walk(asked, False))
    assert set(layers[0].inputs) == {
        f"backbone.layers.0.mixer.{one}.weight"
        for one in ("in_proj", "x_proj", "dt_proj", "out_proj")
    }
    assert set(layers[-1].inputs) == {"backbone.embedding.weight"}
    first = layers[0].inputs["backbone.layers.0.mixer.in_proj.weight"]
    assert first.count == sum(len(one.ids) + 35 * len(one.images) for one in asked)
    rows = torch.cat(
        [torch.cat([torch.from_numpy(one.images[0]),
                    decoder.get_input_embeddings()(torch.tensor(one.ids[1:]))]) for one in asked]
    ).detach()  # fmt: skip
    shares = np.concatenate([[0.1] * 36 + [1.0] * (len(one.ids) - 1) for one in asked])
    normed = decoder.backbone.layers[0].norm(rows).detach().numpy()
    expected = (normed.T * shares) @ normed
    np.testing.assert_allclose(first.gram, expected, rtol=1e-3, atol=1e-3 * expected.max())
