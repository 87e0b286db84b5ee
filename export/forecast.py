"""What a plan will cost: memory on the device and during the build; no weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from mllm_export.kv_cache import KvType, kv_bytes
from mllm_export.plan import ArtifactPlan
from mllm_export.spec import DecoderSpec, EncoderSpec, ModelSpec

_FLOAT_BYTES = 4
_PROCESS_BYTES = 1100 << 20
"""A Python process with torch, transformers, onnxruntime and llama.cpp loaded, and a small model
in its hands; measured on Linux x86-64."""


def kv_cache_bytes(decoder: DecoderSpec, context_tokens: int, kind: KvType = "f16") -> int:
    """Keys and values of every layer over the whole context, or what recurrent layers carry.

    The runtime keeps a copy of what they carried behind the images.
    """
    if decoder.state is not None:
        return 2 * decoder.layers * decoder.state.values * _FLOAT_BYTES
    row = kv_bytes(kind, decoder.kv_heads * decoder.head_dim)
    return 2 * decoder.layers * context_tokens * row


def tower_activation_bytes(encoder: EncoderSpec) -> int:
    """Largest activations of one layer: the attention scores, the MLP and the residual stream."""
    tokens = encoder.grid**2 + encoder.prefix_tokens
    scores = encoder.heads * tokens**2
    stream = tokens * (2 * encoder.width + 2 * encoder.mlp_width)
    return (2 * scores + stream) * _FLOAT_BYTES


def device_memory_bytes(
    spec: ModelSpec, artifacts: Sequence[ArtifactPlan], cache_bytes: int
) -> int:
    """Peak on the device: weights, KV cache, the tower's activations, the prompt's logits."""
    weights = sum(a.size_bytes for a in artifacts if a.role != "mmproj")
    activations = sum(tower_activation_bytes(encoder) for encoder in spec.encoders)
    logits = spec.decoder.vocab * _FLOAT_BYTES * (spec.image_tokens + 64)
    return weights + cache_bytes + activations + logits


def build_memory_bytes(spec: ModelSpec, artifacts: Sequence[ArtifactPlan], cache_bytes: int) -> int:
    """Peak of the largest stage, which is the check of the decoder.

    It holds the export's decoder with its KV cache beside the original's embedding, head and one
    layer in float32. Measured for MobileVLM_V2-1.7B at int4: 2,968 MiB; of the reference: 1,234.
    """
    decoder = next(a for a in artifacts if a.role == "decoder")
    elements = sum(prod(tensor.shape) for tensor in decoder.tensors)
    table = spec.decoder.vocab * spec.decoder.width
    layer = (elements - table) // spec.decoder.layers
    original = (2 * table + layer) * _FLOAT_BYTES
    return _PROCESS_BYTES + decoder.size_bytes + cache_bytes + original
