"""Where the published tensors must stand in the export's files, and how they lie there.

The names in GGUF come from gguf-py's own table, the ones in ONNX are the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import LlamaConfig, LlamaTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from mllm_export.device_tests.originals import Original, OriginalKey, interleaved_rows
from mllm_export.device_tests.reference import Reader
from mllm_export.errors import CheckError


def onnx_originals(
    module: nn.Module, published: str, stored: str, read: Reader, source: str
) -> dict[str, Original]:
    """Every parameter of a module, by name in the ONNX file.

    `published` is read before the parameter's name; `source` is the same in the checkpoint.
    """
    return {
        stored + name: Original(
            source=source + name,
            shape=_stored_shape(owner, parameter),
            read=partial(read, published + name),
            transposed=_is_linear(owner, name),
        )
        for owner, name, parameter in _parameters(module)
    }


def _parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for prefix, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            yield owner, f"{prefix}.{name}" if prefix else name, parameter


def _is_linear(owner: nn.Module, name: str) -> bool:
    pointwise = isinstance(owner, nn.Conv2d) and owner.kernel_size == (1, 1)
    return name.endswith("weight") and (isinstance(owner, nn.Linear) or pointwise)


def _stored_shape(owner: nn.Module, parameter: nn.Parameter) -> tuple[int, ...]:
    shape = tuple(parameter.shape)
    is_matrix = len(shape) > 1 and _is_linear(owner, "weight")
    return (shape[1], shape[0]) if is_matrix else shape


def gguf_originals(config: LlamaConfig, read: Reader) -> dict[str, Original]:
    """Every tensor of the decoder's file, by name in GGUF."""
    import gguf

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    found: dict[str, Original] = {}
    for source, shape in _llama_parameters(config):
        name = table.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise CheckError(f"gguf-py has no name for '{source}'")
        found[name] = Original(
            source=source, shape=shape, read=partial(read, source), rows=_row_order(config, source)
        )
    if getattr(config, "rope_scaling", None) and _rope_kind(config) == "llama3":
        factors = _rope_factors(config)
        found["rope_freqs.weight"] = Original(
            source="config.json: rope_scaling", shape=factors.shape, read=lambda: factors
        )
    return found


def gguf_keys(config: LlamaConfig, tokenizer: LlamaTokenizer) -> tuple[OriginalKey, ...]:
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


def _llama_parameters(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
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
