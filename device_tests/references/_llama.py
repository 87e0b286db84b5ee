"""LLaMA as transformers computes it, and how its tensors must lie in GGUF."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from mllm_export.config import Config
from mllm_export.device_tests.originals import Original, OriginalKey, interleaved_rows
from mllm_export.device_tests.reference import Reader
from mllm_export.device_tests.references._decoder import Architecture, Renamed
from mllm_export.device_tests.references._storage import gguf_name, gguf_names

_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)


def llama(
    plain: dict[str, object], config: Config, published: Renamed | None = None
) -> Architecture:
    """The decoder of a published config.json; its own names only.

    `config` is `plain` again, typed: sizes without which nothing runs are required. `published`
    is there where the checkpoint's names are others than LlamaForCausalLM's.
    """
    for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"):
        config.positive(key)
    made = LlamaConfig(**{key: plain[key] for key in _KEYS if plain.get(key) is not None})
    made._attn_implementation = "sdpa"
    with torch.device("cpu"):
        rotary = LlamaRotaryEmbedding(made)
    tied = made.tie_word_embeddings
    renamed = published or (lambda read: read)
    return Architecture(
        title="LlamaForCausalLM",
        layers=made.num_hidden_layers,
        layer=lambda index: LlamaDecoderLayer(made, index),
        rotary=rotary,
        norm=partial(LlamaRMSNorm, made.hidden_size, made.rms_norm_eps),
        norm_prefix="model.norm.",
        head="model.embed_tokens.weight" if tied else "lm_head.weight",
        renamed=renamed,
        originals=lambda read: _originals(made, renamed(read)),
        keys=partial(_keys, made),
    )


def _originals(config: LlamaConfig, read: Reader) -> dict[str, Original]:
    """Every tensor of the decoder's file, by name in GGUF."""
    table = gguf_names("LLAMA", config.num_hidden_layers)
    found = {
        gguf_name(table, source): Original(
            source=source, shape=shape, read=partial(read, source), rows=_row_order(config, source)
        )
        for source, shape in _parameters(config)
    }
    if getattr(config, "rope_scaling", None) and _rope_kind(config) == "llama3":
        factors = _rope_factors(config)
        found["rope_freqs.weight"] = Original(
            source="config.json: rope_scaling", shape=factors.shape, read=lambda: factors
        )
    return found


def _keys(config: LlamaConfig, tokenizer: Any) -> tuple[OriginalKey, ...]:
    """Sizes, constants and special ids, as llama.cpp's loader asks for them.

    Source: llama.cpp, src/llama-model.cpp, load_hparams, for what stands for an absent key.
    """
    heads, head_dim = config.num_attention_heads, config.head_dim
    sizes: tuple[tuple[str, int | float, int | float | None], ...] = (
        ("block_count", config.num_hidden_layers, None),
        ("context_length", config.max_position_embeddings, None),
        ("embedding_length", config.hidden_size, None),
        ("feed_forward_length", config.intermediate_size, None),
        ("attention.head_count", heads, None),
        ("attention.head_count_kv", config.num_key_value_heads, heads),
        ("attention.key_length", head_dim, config.hidden_size // heads),
        ("attention.value_length", head_dim, config.hidden_size // heads),
        ("attention.layer_norm_rms_epsilon", config.rms_norm_eps, None),
        ("rope.dimension_count", head_dim, head_dim),
        ("rope.freq_base", config.rope_theta, 10000.0),
        ("vocab_size", config.vocab_size, config.vocab_size),
    )
    words: tuple[tuple[str, int | str | bool], ...] = (
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.bos_token_id", tokenizer.bos_token_id),
        ("tokenizer.ggml.eos_token_id", tokenizer.eos_token_id),
        ("tokenizer.ggml.add_bos_token", tokenizer.add_bos_token),
    )
    return (
        *(OriginalKey(key=f"llama.{key}", value=v, default=d) for key, v, d in sizes),
        *_scaling_keys(config),
        *(OriginalKey(key=key, value=value) for key, value in words),
    )


def _scaling_keys(config: LlamaConfig) -> Iterator[OriginalKey]:
    """Linear scaling is two keys, llama3's a tensor; without scaling no key may say otherwise."""
    scaling = config.rope_scaling or {}
    kind = _rope_kind(config) if scaling else "none"
    if kind == "linear":
        yield OriginalKey(key="llama.rope.scaling.type", value=kind)
        yield OriginalKey(key="llama.rope.scaling.factor", value=scaling["factor"])
    elif kind == "none":
        yield OriginalKey(key="llama.rope.scaling.factor", value=1.0, default=1.0)


def _parameters(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    table = (config.vocab_size, config.hidden_size)
    yield "model.embed_tokens.weight", table
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, 0)
    for index in range(config.num_hidden_layers):
        for name, parameter in layer.named_parameters():
            yield f"model.layers.{index}.{name}", tuple(parameter.shape)
    yield "model.norm.weight", (config.hidden_size,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", table


def _row_order(config: LlamaConfig, source: str) -> npt.NDArray[np.int64] | None:
    if ".q_proj." in source:
        return interleaved_rows(config.num_attention_heads, config.head_dim)
    if ".k_proj." in source:
        return interleaved_rows(config.num_key_value_heads, config.head_dim)
    return None


def _rope_kind(config: LlamaConfig) -> str:
    return str(config.rope_scaling.get("rope_type", config.rope_scaling.get("type")))


def _rope_factors(config: LlamaConfig) -> npt.NDArray[Any]:
    """How much slower each rotation is than without scaling; ggml divides by it."""
    plain = 1.0 / config.rope_theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    scaled = LlamaRotaryEmbedding(config).inv_freq.numpy()
    return np.asarray(plain / scaled, np.float32)
