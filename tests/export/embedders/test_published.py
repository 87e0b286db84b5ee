"""Every published CLIP and ViTamin by its real shapes, without a weight: nothing is left over."""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from dataclasses import replace
from math import prod

import pytest
import timm
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.embedder_graphs import image_graph, text_graph
from mllm_export.export.embedder_parts import embedder_for
from mllm_export.export.parts import ENCODERS
from mllm_export.export.random_embedder import write_clip_tokenizer


def clip_sizes(vision, text, embed, **changes):
    """Width, layers, heads, patch and image of the tower; width, layers and heads of the text."""
    width, layers, heads, patch, image = vision
    tower = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_size": patch,
        "image_size": image,
        **changes,
    }
    width, layers, heads = text
    words = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": 49408,
        **changes,
    }
    return {"vision_config": tower, "text_config": words, "projection_dim": embed}  # fmt: skip


# Configs and numbers of parameters. Source: openai/clip-vit-base-patch32, -base-patch16,
# -large-patch14, -large-patch14-336; laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
CLIPS = {
    "B/32": (clip_sizes((768, 12, 12, 32, 224), (512, 12, 8), 512), 151_277_313, 49),
    "B/16": (clip_sizes((768, 12, 12, 16, 224), (512, 12, 8), 512), 149_620_737, 196),
    "L/14": (clip_sizes((1024, 24, 16, 14, 224), (768, 12, 12), 768), 427_616_513, 256),
    "L/14-336": (clip_sizes((1024, 24, 16, 14, 336), (768, 12, 12), 768), 427_944_193, 576),
    "H/14": (
        clip_sizes((1280, 32, 16, 14, 224), (1024, 24, 16), 1024, hidden_act="gelu"),
        986_109_441, 256,
    ),
}  # fmt: skip


def read(folder):
    checkpoint = Checkpoint(folder)
    entry = embedder_for(checkpoint.config)
    assert entry is not None
    return entry.read(checkpoint)


def clip_folder(folder, sizes):
    write_clip_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", **sizes}))
    return folder


@pytest.mark.parametrize("name", CLIPS)
def test_every_tensor_of_a_published_clip_has_its_place(name, tmp_path):
    sizes, parameters, _ = CLIPS[name]
    reading = read(clip_folder(tmp_path, sizes))
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**sizes))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert sum(map(prod, shapes.values())) == parameters
    dropped = reading.weights.resolve(shapes)
    assert [row.source for row in dropped] == ["logit_scale"]


@pytest.mark.parametrize("name", CLIPS)
def test_a_published_clip_gives_pooled_rows_and_patches(name, tmp_path):
    sizes, _, patches = CLIPS[name]
    spec = read(clip_folder(tmp_path, sizes)).spec
    rows = (1, patches, spec.encoder.width)
    assert run(image_graph(spec)) == {"image_embeds": (1, sizes["projection_dim"]), "patches": rows}
    assert run(text_graph(spec.text)) == {"text_embeds": (1, sizes["projection_dim"])}
    # As a model that answers takes them: of the layer before the last, with or without the class.
    for keep_prefix in (False, True):
        cut = replace(spec.encoder, select_layer=-2, keep_prefix=keep_prefix)
        encoder = ENCODERS["clip_vit"]
        with torch.device("meta"):
            side = cut.image.size_px
            weights = {n: torch.empty(s) for n, s in stored(encoder.parameters(cut)).items()}
            rows = encoder.apply(cut, weights, torch.empty(1, 3, side, side))
        assert tuple(rows.shape) == (1, patches + keep_prefix, cut.width)


def stored(parameters):
    from mllm_export.export.stored import stored_shapes

    return stored_shapes("", parameters)


def run(graph):
    """The shapes of a graph's outputs, computed without data."""
    with torch.device("meta"):
        weights = {n: torch.empty(s) for n, s in graph.stored().items()}
        dtype = torch.int64 if graph.integer else torch.float32
        given = [torch.empty(shape, dtype=dtype) for shape in graph.inputs.values()]
        made = graph.apply(weights, given)
    shapes = {n: tuple(one.shape) for n, one in zip(graph.outputs, made, strict=True)}
    assert shapes == graph.outputs
    return shapes


class Block(nn.Module):
    """Names as open_clip's ResidualAttentionBlock has them."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        inner = {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(inner))


class Text(nn.Module):
    """Names as open_clip's TextTransformer has them."""

    def __init__(self, width, heads, layers, embed):
        super().__init__()
        self.token_embedding = nn.Embedding(49408, width)
        self.positional_embedding = nn.Parameter(torch.empty(77, width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed))


# Timm's name, embedding, text (width, heads, layers), whether the text stands below `text.`, and
# millions of parameters as published, where they are. Source: Beckschen/ViTamin,
# ViTamin/open_clip/model_configs and README.md.
_L, _L2, _XL = (768, 12, 12), (1024, 16, 24), (1152, 16, 27)
VITAMINS = {
    "S": ("vitamin_small_224", 384, (384, 6, 12), False, None),
    "S-LTT": ("vitamin_small_224", 768, _L, True, None),
    "B": ("vitamin_base_224", 512, (512, 8, 12), False, None),
    "B-LTT": ("vitamin_base_224", 768, _L, True, None),
    "L-224px": ("vitamin_large_224", 768, _L, True, (333.3, 123.7)),
    "L-256px": ("vitamin_large_256", 768, _L, True, (333.4, 123.7)),
    "L-336px": ("vitamin_large_336", 768, _L, True, (333.6, 123.7)),
    "L-384px": ("vitamin_large_384", 768, _L, True, (333.7, 123.7)),
    "L2-224px": ("vitamin_large2_224", 1024, _L2, False, (333.6, 354.0)),
    "L2-256px": ("vitamin_large2_256", 1024, _L2, False, (333.6, 354.0)),
    "L2-336px": ("vitamin_large2_336", 1024, _L2, False, (333.8, 354.0)),
    "L2-384px": ("vitamin_large2_384", 1024, _L2, False, (334.0, 354.0)),
    "XL-256px": ("vitamin_xlarge_256", 1152, _XL, True, (436.1, 488.7)),
    "XL-336px": ("vitamin_xlarge_336", 1152, _XL, True, (436.1, 488.7)),
    "XL-384px": ("vitamin_xlarge_384", 1152, _XL, True, (436.1, 488.7)),
}


def vitamin_shapes(name):
    """Of the trunk from timm, with open_clip's head and text tower around it."""
    architecture, embed, (width, heads, layers), below, _ = VITAMINS[name]
    with torch.device("meta"):
        trunk = timm.create_model(architecture, num_classes=0)
        text = Text(width, heads, layers, embed)
    image = {f"visual.trunk.{n}": tuple(p.shape) for n, p in trunk.named_parameters()}
    image["visual.head.proj.weight"] = (embed, trunk.embed_dim)
    prefix = "text." if below else ""
    return image, {prefix + n: tuple(p.shape) for n, p in text.named_parameters()}


def vitamin_folder(folder, name):
    """A release whose file has a header, and behind it a hole as large as the tensors."""
    architecture, embed, (width, heads, layers), _, _ = VITAMINS[name]
    write_clip_tokenizer(folder)
    image, text = vitamin_shapes(name)
    at, header = 0, {}
    for tensor, shape in {**image, **text, "logit_scale": ()}.items():
        end = at + 4 * prod(shape)
        header[tensor] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header).encode()
    with (folder / "open_clip_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + at)
    size_px = int(architecture.rsplit("_", 1)[1])
    config = {
        "architectures": ["ViTaminCLIP"],
        "embed_dim": embed,
        "vision_cfg": {"timm_model_name": architecture, "timm_pool": "", "timm_proj": "linear",
                       "timm_drop_path": 0.1, "image_size": size_px},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": width, "heads": heads,
                     "layers": layers},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", VITAMINS)
def test_every_tensor_of_a_published_vitamin_has_its_place(name, tmp_path):
    folder = vitamin_folder(tmp_path, name)
    reading = read(folder)
    dropped = reading.weights.resolve(Checkpoint(folder).shapes(False))
    assert [row.source for row in dropped] == ["logit_scale"]
    assert reading.notes == ()
    counts = dict.fromkeys(("tower", "head", "text"), 0)
    for take in reading.weights.takes:
        counts[take.part] += prod(take.shape)
    published = VITAMINS[name][4]
    if published is not None:
        found = (counts["tower"] + counts["head"], counts["text"])
        assert tuple(round(one / 1e6, 1) for one in found) == published


@pytest.mark.parametrize("name", VITAMINS)
def test_a_published_vitamin_gives_both_embeddings_in_one_space(name, tmp_path):
    architecture, embed, *_ = VITAMINS[name]
    spec = read(vitamin_folder(tmp_path, name)).spec
    image, text = run(image_graph(spec)), run(text_graph(spec.text))
    assert image["image_embeds"] == text["text_embeds"] == (1, embed)
    side = int(architecture.rsplit("_", 1)[1]) // 16
    assert image["patches"] == (1, side**2, spec.encoder.width)
    assert (spec.encoder.image.size_px, spec.encoder.tokens_out) == (16 * side, side**2)
