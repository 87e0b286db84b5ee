"""Keys and values rounded as a runtime's cache of some type would hold them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_export.catalog import unknown
from mllm_export.device_tests.diagnosis.walked import Walked
from mllm_export.device_tests.reference import Floats, Reference
from mllm_export.errors import CheckError

if TYPE_CHECKING:
    from torch import Tensor

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What llama.cpp takes. Source: llama.cpp, common/arg.cpp, kv_cache_types."""


class RoundedCache:
    """Stands in for transformers' cache of one sequence given whole."""

    def __init__(self, kind: str) -> None:
        """Raises: CheckError for a type that llama.cpp has not."""
        if kind not in KV_TYPES:
            raise CheckError(unknown("KV cache type", kind, list(KV_TYPES)))
        self._kind = kind

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Both, rounded. Shapes: [B, H, T, head_dim] twice."""
        return self._rounded(keys), self._rounded(values)

    def _rounded(self, values: Tensor) -> Tensor:
        import torch

        made = round_rows(np.ascontiguousarray(values.float().numpy()), self._kind)
        return torch.from_numpy(made).to(values.dtype)


def rounding(reference: Reference, kind: str) -> AbstractContextManager[object]:
    """While it lasts the original rounds keys and values to that type; f32: nothing is rounded.

    Raises: CheckError for an original whose layers cannot be given a cache.
    """
    if kind == "f32":
        return nullcontext()
    from mllm_export.device_tests.references._watch import watching

    cache, layers = RoundedCache(kind), frozenset(Walked(reference).decoder_layers())
    if not layers:
        raise CheckError("the original shows no layers that keys and values could be rounded in")

    def give(
        prefix: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return (args, {**kwargs, "past_key_values": cache}) if prefix in layers else None

    return watching(give)


def round_rows(rows: Floats, kind: str) -> Floats:
    """To the type and back by gguf-py, blocks along the last axis.

    llama.cpp holds LLaMA's keys in another order within a head, so a block holds other members
    of the same head there; the size of the error is the same.
    """
    import gguf

    if kind == "f32":
        return rows
    made = gguf.GGMLQuantizationType[kind.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[made]
    if rows.shape[-1] % block:
        raise CheckError(f"a head of {rows.shape[-1]} values cannot be stored as {kind}")
    packed = gguf.quants.quantize(rows, made)
    return np.asarray(gguf.quants.dequantize(packed, made), np.float32).reshape(rows.shape)
