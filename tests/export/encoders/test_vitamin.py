"""ViTamin against timm's own, in both published layouts, and each known trap planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vitamin import GeGluMlp, VitCfg, _create_vitamin

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.part_module import encoder_module
from mllm_export.export.parts import ENCODERS
from mllm_export.export.tower_choice import encoder_for, name_prefix
from mllm_export.weights import Take, WeightMap

VITAMIN = ENCODERS["vitamin"]
TINY = VITAMIN.tiny()
# Trunk parameters without a head. Source: the timm models, counted.
PUBLISHED = {
    "vitamin_small_224": 21_878, "vitamin_base_224": 87_132,
    "vitamin_large_224": 332_532, "vitamin_large_256": 332_593,
    "vitamin_large_336": 332_782, "vitamin_large_384": 332_921,
    "vitamin_large2_224": 332_532, "vitamin_large2_256": 332_593,
    "vitamin_large2_336": 332_782, "vitamin_large2_384": 332_921,
    "vitamin_xlarge_256": 434_727, "vitamin_xlarge_336": 434_727, "vitamin_xlarge_384": 434_727,
}  # fmt: skip


def original(spec, rough, positions="learn"):
    """timm's model with the sizes of a spec and weights at a scale where faults show."""
    conv = spec.conv
    cfg = VitCfg(
        embed_dim=(*conv.widths, spec.width), depths=(*conv.blocks, 1), stem_width=conv.stem_width
    )
    model = _create_vitamin(
        "vitamin_small_224",
        embed_cfg=cfg,
        img_size=spec.image.size_px,
        embed_dim=spec.width,
        depth=spec.layers,
        num_heads=spec.heads,
        mlp_layer=GeGluMlp,
        mlp_ratio=2.0,
        class_token=False,
        global_pool="avg",
        pos_embed=positions,
        num_classes=24,
    )
    rough(model)
    if model.pos_embed is not None:
        generator = torch.Generator().manual_seed(5)
        model.pos_embed.data = 0.7 * torch.randn(model.pos_embed.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def features(model, spec, pixels):
    """timm's own cut: what leaves a block, before any norm."""
    (rows,) = model.forward_intermediates(
        pixels, indices=[spec.run_layers - 1], norm=False, output_fmt="NLC", intermediates_only=True
    )
    return rows.numpy()


def pixels_of(spec, seed=0):
    side = spec.image.size_px
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def ours(spec, weights, pixels):
    with torch.no_grad():
        return encoder_module(VITAMIN, spec, lambda n: weights[n].numpy())(pixels).numpy()


@pytest.mark.parametrize("select_layer", [-1, -2, 1])
def test_features_are_what_leaves_the_selected_block(rough_weights, error, select_layer):
    spec = replace(TINY, select_layer=select_layer)
    model = original(spec, rough_weights)
    pixels = pixels_of(spec)
    found = ours(spec, model.state_dict(), pixels)
    assert found.shape == (1, 36, 64)
    assert error(found, features(model, spec, pixels)) < 2e-5


def test_xl_has_no_positions(rough_weights, error):
    spec = replace(TINY, position_grid=0)
    model = original(spec, rough_weights, positions="none")
    assert "pos_embed" not in VITAMIN.parameters(spec)
    pixels = pixels_of(spec)
    assert error(ours(spec, model.state_dict(), pixels), features(model, spec, pixels)) < 2e-5


@pytest.mark.parametrize("stored", [4, 9], ids=["grown", "shrunk"])
def test_positions_of_another_resolution_are_resized_as_timm_resizes_them(
    rough_weights, error, stored
):
    spec = replace(TINY, position_grid=stored)
    model = original(spec, rough_weights)
    weights = dict(model.state_dict())
    table = 0.7 * torch.randn(1, stored**2, 64, generator=torch.Generator().manual_seed(6))
    model.pos_embed.data = resample_abs_pos_embed(table, [6, 6], num_prefix_tokens=0)
    pixels = pixels_of(spec)
    theirs = features(model, spec, pixels)
    assert error(ours(spec, {**weights, "pos_embed": table}, pixels), theirs) < 2e-5


def _swapped(weights, one, other):
    return {**weights, one: weights[other], other: weights[one]}


_AT = "blocks.0."
FAULTS = {
    "eps of 1e-5": (lambda s, w: (replace(s, norm_eps=1e-5), w), 1e-3),
    "tanh for erf": (lambda s, w: (replace(s, activation="gelu_pytorch_tanh"), w), 1e-4),
    "one norm before the gate": (
        lambda s, w: (s, {**w, f"{_AT}mlp.norm.weight": torch.ones(64),
                          f"{_AT}mlp.norm.bias": torch.zeros(64)}), 1e-2,
    ),
    "gate and value swapped": (
        lambda s, w: (s, _swapped(w, f"{_AT}mlp.w0.weight", f"{_AT}mlp.w1.weight")), 1e-2,
    ),
    "q and k exchanged for v": (
        lambda s, w: (s, {**w, f"{_AT}attn.qkv.weight": w[f"{_AT}attn.qkv.weight"].roll(64, 0)}),
        1e-2,
    ),
    "positions left out": (lambda s, w: (replace(s, position_grid=0), w), 1e-2),
    "positions in column order": (
        lambda s, w: (s, {**w, "pos_embed": w["pos_embed"].reshape(1, 6, 6, -1).transpose(1, 2)
                          .reshape(1, 36, -1)}), 1e-2,
    ),
    "a block too many": (lambda s, w: (replace(s, select_layer=-1), w), 1e-2),
    "a bias of the stem dropped": (
        lambda s, w: (s, {**w, "patch_embed.backbone.stem.conv1.bias": torch.zeros(16)}), 1e-3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(rough_weights, error, fault):
    """Each moves the output far over the bound that the tests above hold."""
    plant, at_least = FAULTS[fault]
    model = original(TINY, rough_weights)
    with torch.no_grad():
        # So small that the first norm's epsilon is a good part of their variance.
        for value in model.patch_embed.backbone.stem.conv1.parameters():
            value *= 0.01
    pixels = pixels_of(TINY)
    spec, weights = plant(TINY, dict(model.state_dict()))
    assert error(ours(spec, weights, pixels), features(model, TINY, pixels)) > at_least


def test_padding_that_is_counted_into_the_mean_shows(rough_weights, error, monkeypatch):
    model = original(TINY, rough_weights)
    pixels = pixels_of(TINY)
    plain = torch.nn.functional.avg_pool2d

    def counting(*args, count_include_pad, **settings):
        return plain(*args, **settings, count_include_pad=True)

    monkeypatch.setattr(torch.nn.functional, "avg_pool2d", counting)
    found = ours(TINY, model.state_dict(), pixels)
    monkeypatch.undo()
    assert error(found, features(model, TINY, pixels)) > 1e-3


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_has_the_parameters_of_timms_model(name):
    """XL at 336 is built by timm with the pretrained config of 256; the name decides here."""
    config = Config({"architecture": name}, "config.json")
    image = VITAMIN.image(config, "crop")
    spec = VITAMIN.read_spec(config, image, -1, False)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    theirs = {
        n: tuple(p.shape) for n, p in model.named_parameters() if n.split(".")[0] != "fc_norm"
    }
    assert dict(VITAMIN.parameters(spec)) == theirs
    with_norm = sum(np.prod(s) for s in theirs.values()) + 2 * spec.width
    assert int(with_norm) // 1000 in {PUBLISHED[name], PUBLISHED[name] - 1}
    assert spec.tokens_out == (int(name.rsplit("_", 1)[1]) // 16) ** 2


def _whole_release(spec, top):
    """Names of a release with its text tower, at the top or below `text.`."""
    trunk = {f"visual.trunk.{n}": s for n, s in VITAMIN.parameters(replace(spec, select_layer=-1))
             .items()}  # fmt: skip
    text = {
        "token_embedding.weight": (8, 4), "positional_embedding": (7, 4), "text_projection": (4, 4),
        "ln_final.weight": (4,), "transformer.resblocks.0.ln_1.weight": (4,),
    }  # fmt: skip
    below = "" if top else "text."
    return {
        **trunk,
        "visual.trunk.fc_norm.weight": (64,),
        "visual.head.proj.weight": (24, 64),
        "logit_scale": (),
        **{below + n: s for n, s in text.items()},
    }


@pytest.mark.parametrize("top", [True, False], ids=["text at the top", "text below text."])
def test_every_tensor_of_a_release_is_taken_or_dropped_with_a_reason(top):
    found = _whole_release(TINY, top)
    parameters = VITAMIN.parameters(TINY)
    prefix = name_prefix(VITAMIN, next(iter(parameters)), "", found)
    assert prefix == "visual.trunk."
    takes = tuple(
        Take(part="tower", parameter=n, source=prefix + n, shape=s) for n, s in parameters.items()
    )
    dropped = WeightMap(takes=takes, drops=VITAMIN.drops(TINY)).resolve(found)
    assert len(takes) + len(dropped) == len(found)


def test_a_tensor_that_no_vitamin_has_is_left_over():
    found = {**VITAMIN.parameters(TINY), "blocks.0.ls1.gamma": (64,)}
    takes = tuple(
        Take(part="tower", parameter=n, source=n, shape=s)
        for n, s in VITAMIN.parameters(TINY).items()
    )
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ls1\.gamma"):
        WeightMap(takes=takes, drops=VITAMIN.drops(TINY)).resolve(found)


@pytest.mark.parametrize(
    ("config", "size_px"),
    [
        ({"architecture": "vitamin_large_336"}, 336),
        ({"architecture": "vitamin_large_336.datacomp1b_clip"}, 336),
        ({"architecture": "vitamin_small_224", "model_args": {"img_size": 448}}, 448),
        ({"vision_cfg": {"timm_model_name": "vitamin_large_384", "image_size": 336}}, 384),
        ({"architecture": "vitamin_xlarge_336", "pretrained_cfg": {"input_size": [3, 256, 256]}},
         336),
    ],
    ids=["timm", "timm with a tag", "another size asked for", "wrong image_size published",
         "wrong input_size published"],
)  # fmt: skip
def test_the_size_is_the_one_the_model_runs_at(config, size_px):
    read = Config(config, "config.json")
    assert encoder_for(read) is VITAMIN
    assert VITAMIN.image(read, "crop").size_px == size_px


def test_an_unknown_size_is_refused_by_name():
    config = Config({"architecture": "vitamin_huge_224"}, "config.json")
    with pytest.raises(UnsupportedModelError, match=r"'vitamin_huge_224'.*small, base"):
        VITAMIN.image(config, "crop")


def test_an_image_that_is_no_whole_number_of_patches_is_refused():
    config = Config({"architecture": "vitamin_small_224"}, "config.json")
    image = replace(TINY.image, size_px=230)
    with pytest.raises(CheckpointError, match="230 px is no whole number of 16 px patches"):
        VITAMIN.read_spec(config, image, -1, False)
