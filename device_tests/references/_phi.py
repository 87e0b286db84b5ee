"""Phi-2 as transformers computes it, from any of its published namings.

Source: transformers, models/phi/modeling_phi.py at 4.36 for the rows of query_key_value;
microsoft/phi-2, modeling_phi.py of the first release, for those of Wqkv.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PhiConfig
from transformers.models.phi.modeling_phi import PhiDecoderLayer, PhiRotaryEmbedding

from mllm_export.config import Config
from mllm_export.device_tests.originals import Original, OriginalKey
from mllm_export.device_tests.reference import Reader
from mllm_export.device_tests.references._decoder import Architecture
from mllm_export.device_tests.references._storage import gguf_name, gguf_names

_OLD_NAMES = (
    ("model.embed_tokens.", "transformer.embd.wte."),
    ("model.final_layernorm.", "lm_head.ln."),
    ("lm_head.", "lm_head.linear."),
    ("model.layers.", "transformer.h."),
)
_OLD_LAYER_NAMES = ((".self_attn.dense.", ".mixer.out_proj."), (".input_layernorm.", ".ln."))


def phi(config: Config, names: frozenset[str]) -> Architecture:
    """The decoder of a published config.json; `names` are the checkpoint's tensors."""
    made = _phi_config(config)
    made._attn_implementation = "sdpa"
    with torch.device("cpu"):
        rotary = PhiRotaryEmbedding(made)
    source = partial(_source, names)
    return Architecture(
        title="PhiForCausalLM",
        layers=made.num_hidden_layers,
        layer=lambda index: PhiDecoderLayer(made, index),
        rotary=rotary,
        norm=partial(nn.LayerNorm, made.hidden_size, made.layer_norm_eps),
        norm_prefix="model.final_layernorm.",
        head="lm_head.weight",
        head_bias="lm_head.bias",
        renamed=lambda read: partial(_read, made, source, read),
        parameter=source,
        taken=lambda read: partial(_read, made, source, read),
        originals=lambda read: _originals(made, source, read),
        keys=partial(_keys, made),
    )


def _phi_config(config: Config) -> PhiConfig:
    """Transformers' configuration, also from the keys of the first release."""
    old = "n_embd" in config and "hidden_size" not in config
    width = config.positive("n_embd" if old else "hidden_size")
    heads = config.positive("n_head" if old else "num_attention_heads")
    inner = config.positive("n_inner", 4 * width) if old else config.positive("intermediate_size")
    share = (
        config.positive("rotary_dim") / (width // heads)
        if old
        else config.number("partial_rotary_factor", 0.5)
    )
    return PhiConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=config.positive("n_layer" if old else "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=config.positive("n_head_kv" if old else "num_key_value_heads", heads),
        vocab_size=config.positive("vocab_size"),
        max_position_embeddings=config.positive(
            "n_positions" if old else "max_position_embeddings"
        ),
        hidden_act=config.text("activation_function" if old else "hidden_act", "gelu_new"),
        layer_norm_eps=config.number("layer_norm_epsilon" if old else "layer_norm_eps", 1e-5),
        partial_rotary_factor=share,
        rope_theta=config.number("rope_theta", 10000.0),
        qk_layernorm=config.flag("qk_layernorm", False),
    )


def _source(names: frozenset[str], name: str) -> str:
    """The checkpoint's name for one of transformers' names; q, k and v may share one."""
    if name in names:
        return name
    for one in ("q_proj", "k_proj", "v_proj"):
        packed = name.replace(one, "query_key_value")
        if packed != name and packed in names:
            return packed
        name = name.replace(f"self_attn.{one}", "mixer.Wqkv")
    for new, old in _OLD_NAMES:
        if name.startswith(new):
            name = old + name.removeprefix(new)
            break
    for new, old in _OLD_LAYER_NAMES:
        name = name.replace(new, old)
    return name


def _rows(config: PhiConfig, name: str, source: str) -> npt.NDArray[np.int64] | None:
    """Which rows of the packed tensor are those of q, k or v; None where nothing is packed."""
    place = next((at for at, one in enumerate("qkv") if f".{one}_proj." in name), None)
    if place is None or source == name:
        return None
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    head_dim = width // heads
    if "query_key_value" in source:  # q, k and v of one head, then of the next
        first = (3 * np.arange(heads) + place) * head_dim
        return np.asarray((first[:, None] + np.arange(head_dim)).ravel())
    kv = _kv_width(config)
    start, count = ((0, width), (width, kv), (width + kv, kv))[place]
    return np.arange(start, start + count)


def _kv_width(config: PhiConfig) -> int:
    return int(config.num_key_value_heads * (config.hidden_size // config.num_attention_heads))


def _read(
    config: PhiConfig, source: Callable[[str], str], read: Reader, name: str
) -> npt.NDArray[Any]:
    published = source(name)
    values = read(published)
    rows = _rows(config, name, published)
    return values if rows is None else values[rows]


def _originals(
    config: PhiConfig, source: Callable[[str], str], read: Reader
) -> dict[str, Original]:
    """Every tensor of the decoder's file, by name in GGUF."""
    table = gguf_names("PHI2", config.num_hidden_layers)
    found: dict[str, Original] = {}
    for name, shape in _parameters(config):
        published = source(name)
        rows = _rows(config, name, published)
        if "Wqkv" in published:  # llama.cpp takes q, k and v packed like this in one tensor
            shape = (config.hidden_size + 2 * _kv_width(config), *shape[1:])
            found[gguf_name(table, published)] = Original(
                source=published, shape=shape, read=partial(read, published)
            )
            continue
        found[gguf_name(table, name)] = Original(
            source=published, shape=shape, read=partial(read, published), rows=rows
        )
    return found


def _parameters(config: PhiConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, table = (config.hidden_size,), (config.vocab_size, config.hidden_size)
    yield "model.embed_tokens.weight", table
    with torch.device("meta"):
        layer = PhiDecoderLayer(config, 0)
    for index in range(config.num_hidden_layers):
        for name, parameter in layer.named_parameters():
            yield f"model.layers.{index}.{name}", tuple(parameter.shape)
    yield "model.final_layernorm.weight", width
    yield "model.final_layernorm.bias", width
    yield "lm_head.weight", table
    yield "lm_head.bias", (config.vocab_size,)


def _keys(config: PhiConfig, tokenizer: Any) -> tuple[OriginalKey, ...]:
    """Sizes, constants and special ids. Source: llama.cpp, src/models/phi2.cpp."""
    head_dim = config.hidden_size // config.num_attention_heads
    sizes: tuple[tuple[str, int | float, int | float | None], ...] = (
        ("block_count", config.num_hidden_layers, None),
        ("context_length", config.max_position_embeddings, None),
        ("embedding_length", config.hidden_size, None),
        ("feed_forward_length", config.intermediate_size, None),
        ("attention.head_count", config.num_attention_heads, None),
        ("attention.head_count_kv", config.num_key_value_heads, config.num_attention_heads),
        ("attention.layer_norm_epsilon", config.layer_norm_eps, None),
        ("rope.dimension_count", int(head_dim * config.partial_rotary_factor), head_dim),
        ("rope.freq_base", config.rope_theta, 10000.0),
        ("rope.scaling.factor", 1.0, 1.0),
    )
    words: tuple[tuple[str, int | str | bool], ...] = (
        ("general.architecture", "phi2"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.bos_token_id", tokenizer.bos_token_id),
        ("tokenizer.ggml.eos_token_id", tokenizer.eos_token_id),
        ("tokenizer.ggml.add_bos_token", False),
    )
    return (
        *(OriginalKey(key=f"phi2.{key}", value=v, default=d) for key, v, d in sizes),
        *(OriginalKey(key=key, value=value) for key, value in words),
    )
