"""DINOv2 and SigLIP against timm's own models, and each known trap planted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn

from mllm_export.config import Config
from mllm_export.errors import CheckpointError
from mllm_export.export.part_module import encoder_module
from mllm_export.export.parts import ENCODERS
from mllm_export.export.tower_choice import encoder_for, name_prefix
from mllm_export.weights import Take, WeightMap

NAMES = {
    "dinov2": "vit_large_patch14_reg4_dinov2",
    "siglip_timm": "vit_so400m_patch14_siglip_384",
}
KINDS = tuple(NAMES)
BOUND = 2e-5


def original(kind, spec, image_px, rough):
    """timm's model with the sizes of a spec and weights at a scale where faults show."""
    model = timm.create_model(
        NAMES[kind],
        num_classes=0,
        img_size=image_px,
        depth=spec.layers,
        embed_dim=spec.width,
        num_heads=spec.heads,
        mlp_ratio=spec.mlp_width / spec.width,
    )
    rough(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in {"pos_embed", "cls_token", "reg_token"}:
                value.copy_(0.7 * torch.randn(value.shape, generator=generator))
    return model.eval()


def at_resolution(kind, spec, weights, rough):
    """The same weights in a model of the spec's resolution, as timm itself loads them."""
    model = original(kind, spec, spec.image.size_px, rough)
    model.load_state_dict(checkpoint_filter_fn(dict(weights), model))
    return model


@torch.no_grad()
def features(model, spec, pixels):
    """What Cobra's towers give: timm's own cut, prefix tokens dropped, before any norm."""
    return model.get_intermediate_layers(pixels, n={spec.run_layers - 1})[0].numpy()


def pixels_of(spec, seed=0):
    side = spec.image.size_px
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def ours(kind, spec, weights, pixels):
    with torch.no_grad():
        return encoder_module(ENCODERS[kind], spec, lambda n: weights[n].numpy())(pixels).numpy()


class Pair:
    """One kind's small twin: stored weights, and timm's features of some pixels."""

    def __init__(self, kind, rough, **changes):
        self.spec = replace(ENCODERS[kind].tiny(), **changes)
        stored = original(kind, self.spec, self.spec.position_grid * 14, rough)
        self.weights = stored.state_dict()
        self.pixels = pixels_of(self.spec)
        model = at_resolution(kind, self.spec, self.weights, rough)
        self.theirs = features(model, self.spec, self.pixels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("select_layer", [-2, -1, 1])
def test_features_are_what_leaves_the_selected_block(rough_weights, error, kind, select_layer):
    pair = Pair(kind, rough_weights, select_layer=select_layer)
    found = ours(kind, pair.spec, pair.weights, pair.pixels)
    assert found.shape == (1, 36, 64)
    assert error(found, pair.theirs) < BOUND


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [5, 6, 9], ids=["grown", "same", "shrunk"])
def test_positions_are_resized_as_timm_resizes_them(rough_weights, error, kind, stored):
    pair = Pair(kind, rough_weights, position_grid=stored)
    assert error(ours(kind, pair.spec, pair.weights, pair.pixels), pair.theirs) < BOUND


def _rolled(name):
    return lambda s, w: (s, {**w, name: w[name].roll(64, 0)})


def _without(name):
    return lambda s, w: (s, {**w, name: torch.zeros_like(w[name])})


def _plain_resize(spec, weights):
    """Positions at the spec's grid already, but without antialiasing."""
    side = spec.position_grid
    grid = weights["pos_embed"].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(spec.grid, spec.grid), mode="bicubic")
    table = grid.permute(0, 2, 3, 1).reshape(1, spec.grid**2, -1)
    return replace(spec, position_grid=spec.grid), {**weights, "pos_embed": table}


FAULTS = {
    "eps of 1e-3": ("dinov2", lambda s, w: (replace(s, norm_eps=1e-3), w)),
    "tanh for erf": (
        "siglip_timm", lambda s, w: (replace(s, activation="gelu_pytorch_tanh"), w),
    ),
    "q and k exchanged for v": ("dinov2", _rolled("blocks.0.attn.qkv.weight")),
    "no scale on the attention": (
        "dinov2",
        lambda s, w: (s, {**w, "blocks.0.ls1.gamma": torch.ones(64)}),
    ),
    "no scale on the MLP": (
        "dinov2",
        lambda s, w: (s, {**w, "blocks.1.ls2.gamma": torch.ones(64)}),
    ),
    "registers left out": ("dinov2", _without("reg_token")),
    "class token left out": ("dinov2", _without("cls_token")),
    "the patch embedding's bias left out": ("siglip_timm", _without("patch_embed.proj.bias")),
    "a block too many": ("siglip_timm", lambda s, w: (replace(s, select_layer=-1), w)),
    "positions resized without antialiasing": ("dinov2", _plain_resize),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(rough_weights, error, fault):
    kind, plant = FAULTS[fault]
    pair = Pair(kind, rough_weights)
    spec, weights = plant(pair.spec, dict(pair.weights))
    assert error(ours(kind, spec, weights, pair.pixels), pair.theirs) > 5 * BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_size_has_the_parameters_of_timms_model(kind):
    config = Config({"architecture": NAMES[kind]}, "config.json")
    encoder = encoder_for(config)
    assert encoder is ENCODERS[kind]
    image = replace(encoder.image(config, "stretch"), size_px=384)
    spec = encoder.read_spec(config, image, -2, False)
    with torch.device("meta"):
        model = timm.create_model(NAMES[kind], num_classes=0)
    theirs = {name: tuple(value.shape) for name, value in model.named_parameters()}
    takes = tuple(
        Take(part="tower", parameter=n, source=n, shape=s)
        for n, s in encoder.parameters(spec).items()
    )
    dropped = WeightMap(takes=takes, drops=encoder.drops(spec)).resolve(theirs)
    assert len(takes) + len(dropped) == len(theirs)
    assert {one.source.split(".")[0] for one in dropped} <= {"blocks", "norm", "attn_pool"}
    assert (spec.run_layers, spec.layers - 1, spec.tokens_out) == (spec.layers - 1,) * 2 + (729,)


@pytest.mark.parametrize("kind", KINDS)
def test_open_clips_file_is_told_by_its_names(kind):
    spec = ENCODERS[kind].tiny()
    parameters = ENCODERS[kind].parameters(spec)
    whole = {f"visual.trunk.{name}": shape for name, shape in parameters.items()}
    whole |= {"visual.trunk.norm.weight": (64,), "text.ln_final.weight": (8,), "logit_scale": ()}
    prefix = name_prefix(ENCODERS[kind], next(iter(parameters)), "", whole)
    assert prefix == "visual.trunk."
    takes = tuple(
        Take(part="tower", parameter=n, source=prefix + n, shape=s) for n, s in parameters.items()
    )
    dropped = WeightMap(takes=takes, drops=ENCODERS[kind].drops(spec)).resolve(whole)
    assert len(takes) + len(dropped) == len(whole)


def test_a_tensor_that_no_siglip_has_is_left_over():
    spec = ENCODERS["siglip_timm"].tiny()
    found = {**ENCODERS["siglip_timm"].parameters(spec), "blocks.0.ls1.gamma": (64,)}
    takes = tuple(
        Take(part="tower", parameter=n, source=n, shape=s)
        for n, s in ENCODERS["siglip_timm"].parameters(spec).items()
    )
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ls1\.gamma"):
        WeightMap(takes=takes, drops=ENCODERS["siglip_timm"].drops(spec)).resolve(found)
