"""What a plan will cost: memory on the device and during the build; no weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from mllm_export.export.tower_pieces import PIECE_BYTES
from mllm_export.export.tower_plan import tower_tensors
from mllm_export.kv_cache import KvType, kv_bytes
from mllm_export.plan import ArtifactPlan, Plan
from mllm_export.spec import DecoderSpec, EncoderSpec, ModelSpec

_FLOAT_BYTES = 4
_PROCESS_BYTES = 1100 << 20
"""A Python process with torch, transformers, onnxruntime and llama.cpp loaded, and a small model
in its hands; measured on Linux x86-64."""


_RUN_PROCESS_BYTES = 138 << 20
"""A process with numpy and ONNX Runtime, beside the float weights that it runs."""
_TRACE_PROCESS_BYTES = 900 << 20
"""A process with torch and its exporter; weights pass through it one at a time."""
_QUANTIZE_PROCESS_BYTES = 130 << 20
"""A process with onnx and ONNX Runtime."""
_PIECE_COPIES = 6.8
"""Of the weights of a piece: the message, its values, the session's, and what C keeps of them."""
_DECODER_PROCESS_BYTES = 116 << 20
"""A process with numpy and gguf, and the slabs it packs and writes."""
_PREFIX_PROCESS_BYTES = 100 << 20
"""A process with llama.cpp and its buffers, beside the decoder and its KV cache."""
_INTERLEAVED = ("Q4_0", "Q4_K")
"""Layouts that llama.cpp copies into rows of its own while it loads a file, which is mapped.
Source: llama.cpp, ggml/src/ggml-cpu/repack.cpp."""
_LOOKED_UP = "token_embd.weight"
"""GGUF's name of the embedding, of which only a few rows are read."""


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


def unchecked_build_memory_bytes(plan: Plan, *, keeps_beginning: bool) -> int:
    """Peak of the largest stage before the checks, in the process that holds it.

    `keeps_beginning`: see `pace.build_seconds`. Measured for MobileVLM_V2-1.7B at int4: 896 MiB
    in the exporter, 1,272 where the float tower is run, 1,082 in the quantizer, 98 in the
    decoder's writer, 1,464 where the prompt's beginning is computed (at int8 1,806).
    """
    found = [_DECODER_PROCESS_BYTES]
    tower, decoder = plan.artifact("tower"), plan.artifact("decoder")
    if tower is not None:
        floats = sum(_FLOAT_BYTES * prod(t.shape) for t in tower_tensors(plan.spec.vision))
        found += [_TRACE_PROCESS_BYTES, _RUN_PROCESS_BYTES + floats]
        piece = int(_PIECE_COPIES * min(PIECE_BYTES, floats))
        found.append(_QUANTIZE_PROCESS_BYTES + tower.size_bytes + piece)
    if decoder is not None and keeps_beginning:
        found.append(_PREFIX_PROCESS_BYTES + _opened_bytes(decoder, plan.kv_cache_bytes))
    return max(found)


def _opened_bytes(decoder: ArtifactPlan, cache_bytes: int) -> int:
    """The decoder in llama.cpp: while it is loaded, or with its cache once it is."""
    read = [row for row in decoder.tensors if row.name != _LOOKED_UP]
    mapped = sum(row.size_bytes for row in read)
    copied = sum(row.size_bytes for row in read if row.scheme in _INTERLEAVED)
    return mapped + max(copied, cache_bytes)
