"""Small checkpoints of encoders alone in every published layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from mllm_export.config import Config
from mllm_export.export.encoders.vitamin import ENCODER as VITAMIN
from mllm_export.export.heads.mean_norm_bias import HEAD
from mllm_export.export.random_embedder import (
    write_clip_tokenizer,
    write_random_embedder,
    write_siglip_tokenizer,
)

VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_SEEING = 10
"""A seed whose scores depend on the picture: 0.21 nats and more, 0.007 with seed 0.

float16 alone moves scores of this temperature by 1e-4 nats, two percent of the latter.
"""
TEXT = {
    "hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 16,
}  # fmt: skip


def clip(folder: Path, **changes: object) -> Path:
    from transformers import CLIPConfig, CLIPModel

    write_files = folder / "vocab.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_clip_tokenizer(folder)
    vocab = len(json.loads(write_files.read_text()))
    # As published: bos and eos of the config are not the tokenizer's.
    text = {**TEXT, "vocab_size": vocab, "eos_token_id": 2, "bos_token_id": 0}
    config = CLIPConfig(vision_config=VISION, text_config=text, projection_dim=24)
    return _save(folder, CLIPModel(config), config, {"logit_scale": (2.5, ())}, **changes)


def siglip(folder: Path, **changes: object) -> Path:
    from transformers import SiglipConfig, SiglipModel

    folder.mkdir(parents=True, exist_ok=True)
    write_siglip_tokenizer(folder)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    # Long enough for labels of single letters behind the template.
    text = {**TEXT, "hidden_size": 48, "vocab_size": len(words), "max_position_embeddings": 48}
    config = SiglipConfig(vision_config=VISION, text_config=text)
    scalars = {"logit_scale": (4.5, (1,)), "logit_bias": (-1.5, (1,))}
    return _save(folder, SiglipModel(config), config, scalars, _SEEING, **changes)


def _save(folder, model, config, scalars, seed=0, **changes):
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if n not in scalars}
    plain = {**json.loads(config.to_json_string()), **changes}
    return write_random_embedder(folder, plain, shapes, seed=seed, scalars=scalars)


NAMED = {"model_args": {"depth": 2, "img_size": 96}}
TINY = VITAMIN.read_spec(
    Config({"architecture": "vitamin_small_224", **NAMED}, "tiny"), VITAMIN.tiny().image, -1, False
)


def _trunk(table: int | None) -> dict[str, tuple[int, ...]]:
    spec = replace(TINY, position_grid=table)
    return {**VITAMIN.parameters(spec), **HEAD.parameters(spec, 24)}


def vitamin_timm(folder: Path, table: int | None = None) -> Path:
    config = {"architecture": "vitamin_small_224", "num_classes": 24, **NAMED}
    return write_random_embedder(folder, config, _trunk(table))


def vitamin_open_clip(folder: Path, below: str = "text.") -> Path:
    from mllm_export.embedder import TextTowerSpec
    from mllm_export.export.text_towers.open_clip_text import TEXT_TOWER

    folder.mkdir(parents=True, exist_ok=True)
    write_clip_tokenizer(folder)
    vocab = len(json.loads((folder / "vocab.json").read_text()))
    text = TextTowerSpec(
        kind="open_clip_text", width=40, layers=2, heads=4, mlp_width=160, activation="gelu",
        norm_eps=1e-5, vocab=vocab, context_tokens=16, embed_width=24, bos_id=0, eos_id=1, pad_id=0,
    )  # fmt: skip
    trunk = _trunk(None)
    del trunk["head.bias"]
    shapes = {
        ("visual.head.proj.weight" if n == "head.weight" else f"visual.trunk.{n}"): s
        for n, s in trunk.items()
    }
    shapes.update({below + n: s for n, s in TEXT_TOWER.parameters(text).items()})
    config = {
        "architectures": ["ViTaminCLIP"],
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "vitamin_small_224", "timm_pool": "", "image_size": 224},
        **NAMED,
        "text_cfg": {
            "context_length": 16, "vocab_size": vocab, "width": 40, "heads": 4, "layers": 2,
        },
    }  # fmt: skip
    return write_random_embedder(folder, config, shapes, scalars={"logit_scale": (2.5, ())})
