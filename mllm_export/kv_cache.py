"""How keys and values of the language model's context are stored on the device."""

from __future__ import annotations

from typing import Literal, get_args

from mllm_export.catalog import unknown
from mllm_export.errors import PlanError

KvType = Literal["f32", "f16", "q8_0", "q4_0"]

KV_TYPES: tuple[KvType, ...] = get_args(KvType)

_BLOCKS = {"f32": (1, 4), "f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}
"""Values and bytes of one block. Source: ggml-common.h, block_q8_0 and block_q4_0."""


def require_kv_type(kind: str) -> KvType:
    """The word as a type.

    Raises: PlanError, with the near names, for one that is none.
    """
    for known in KV_TYPES:
        if kind == known:
            return known
    raise PlanError(unknown("KV cache type", kind, list(KV_TYPES)))


def kv_bytes(kind: KvType, values: int) -> int:
    """Bytes of that many keys or values, whole heads of them."""
    block, size_bytes = _BLOCKS[kind]
    return values // block * size_bytes


def fits_head(kind: KvType, head_dim: int) -> bool:
    """Whether the blocks divide a head, as llama.cpp asks for.

    Source: llama.cpp, src/llama-context.cpp, llama_init_from_model.
    """
    return head_dim % _BLOCKS[kind][0] == 0


def require_fits(kind: KvType, head_dim: int) -> None:
    """Raises: PlanError for heads that blocks of that type do not divide."""
    if not fits_head(kind, head_dim):
        block = _BLOCKS[kind][0]
        raise PlanError(
            f"a KV cache of type {kind} holds blocks of {block} values, heads of this model have "
            f'{head_dim}; choose a recipe with kv_cache = "f16"'
        )
