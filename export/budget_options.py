"""What a memory budget chooses between: groups of tensors, and how each can be stored.

Groups are the layers of every encoder, the projector, the decoder's embedding, layers and output
head, and the KV cache. Sizes follow from shapes; no weight is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from mllm_export.export.forecast import kv_cache_bytes
from mllm_export.export.parts import DECODERS, GgufTensor
from mllm_export.export.stored import PROJECTOR
from mllm_export.export.tower_plan import tower_tensors
from mllm_export.export.vision_parts import vision_groups
from mllm_export.kv_cache import KvType, fits_head
from mllm_export.plan import Plan
from mllm_export.quantize.budget import KV_GROUP, Option
from mllm_export.quantize.kept import is_kept
from mllm_export.quantize.layout import stored_bytes
from mllm_export.quantize.scheme import fit_layout
from mllm_export.quantize.tower_scheme import ENDINGS, tower_scheme
from mllm_export.spec import ModelSpec, VisionSpec

TOWER_OPTIONS = ("f32", "w8a8-static", "w4g32")
"""Not float16: ONNX Runtime widens it when the file is opened, so that no memory is won."""

DECODER_OPTIONS = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K")
KV_OPTIONS: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")


def budget_options(spec: ModelSpec, context_tokens: int) -> tuple[Option, ...]:
    """Every group in every scheme, in the model's order; losses are zero, for they are measured."""
    return (*_vision(spec.vision), *_decoder(spec), *_kv(spec, context_tokens))


def fixed_bytes(plan: Plan) -> int:
    """What stays whatever is chosen: activations, and tensors that belong to no group."""
    products = {
        name + ending
        for names in product_groups(plan.spec.vision).values()
        for name in names
        for ending in ("", *ENDINGS)
    }
    tower, decoder = plan.artifact("tower"), plan.artifact("decoder")
    spent = sum(row.size_bytes for row in (tower.tensors if tower else ()) if row.name in products)
    rows = decoder.tensors if decoder else ()
    spent += sum(row.size_bytes for row in rows if len(row.shape) > 1)
    if plan.spec.decoder.state is None:
        spent += plan.kv_cache_bytes
    return plan.device_memory_bytes - spent


def product_groups(vision: VisionSpec) -> dict[str, tuple[str, ...]]:
    """Stored names of the weights of matrix products, by group: each layer, what else, projector.

    A group's name is the beginning of its tensors' names.
    """
    parts = vision_groups(vision)
    found: dict[str, tuple[str, ...]] = {}
    for tensor in tower_tensors(vision):
        if tensor.is_product:
            part = next(one for one in parts if tensor.name.startswith(one))
            group = part.rstrip(".") if part == PROJECTOR else _layer(part, tensor.name)
            found[group] = (*found.get(group, ()), tensor.name)
    return found


def _layer(part: str, name: str) -> str:
    """The name up to its first number, or the whole part's where it stands in no layer."""
    words = name.removeprefix(part).split(".")
    before = list(takewhile(lambda word: not word.isdigit(), words))
    if len(before) == len(words):
        return part.rstrip(".")
    return part + ".".join([*before, words[len(before)]])


def decoder_groups(tensors: Sequence[GgufTensor]) -> dict[str, list[GgufTensor]]:
    """Matrices of each layer, the embedding and the head; vectors belong to no group."""
    found: dict[str, list[GgufTensor]] = {}
    for tensor in tensors:
        if len(tensor.shape) < 2:
            continue
        words = tensor.name.split(".")
        group = ".".join(words[:2]) if words[0] == "blk" else words[0]
        found.setdefault(group, []).append(tensor)
    return found


def layout_of(tensor: GgufTensor, scheme: str) -> str:
    """What a tensor is stored as where a rule says `scheme`."""
    if is_kept(tensor.name, tensor.shape):
        return "F32"
    return fit_layout(scheme, tensor.shape, tensor.least).scheme


def _vision(vision: VisionSpec) -> Iterator[Option]:
    shapes = {tensor.name: tensor.shape for tensor in tower_tensors(vision)}
    for group, names in product_groups(vision).items():
        for scheme in TOWER_OPTIONS:
            parts = [part for name in names for part in tower_scheme(scheme).parts(shapes[name])]
            yield _option(group, scheme, sum(part.size_bytes for part in parts))


def _decoder(spec: ModelSpec) -> Iterator[Option]:
    tensors = DECODERS[spec.decoder.kind].tensors(spec.decoder)
    for group, members in decoder_groups(tensors).items():
        for scheme in DECODER_OPTIONS:
            sizes = [stored_bytes(layout_of(tensor, scheme), tensor.shape) for tensor in members]
            yield _option(group, scheme, sum(sizes))


def _kv(spec: ModelSpec, context_tokens: int) -> Iterator[Option]:
    decoder = spec.decoder
    if decoder.state is not None:  # layers without attention carry the same whatever is chosen
        return
    for kind in KV_OPTIONS:
        if fits_head(kind, decoder.head_dim):
            yield _option(KV_GROUP, kind, kv_cache_bytes(decoder, context_tokens, kind))


def _option(group: str, scheme: str, size_bytes: int) -> Option:
    return Option(group=group, scheme=scheme, size_bytes=size_bytes, loss=0.0)
