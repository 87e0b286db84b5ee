"""Tower and projector as an mmproj GGUF, for llama.cpp's own multimodal tools.

The file is right where the library is: the revision inside llama-cpp-python 0.3.36 computes CLIP
towers with a class token wrongly (see `mmproj_measure`), so a file must be measured before use.
Source: ggml-org/llama.cpp, tools/mtmd/clip.cpp and clip-impl.h, as in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mllm_export.errors import PlanError
from mllm_export.export.decoder_plan import StoredTensor, file_type
from mllm_export.export.formats.gguf import write_gguf
from mllm_export.export.parts import (
    ENCODERS,
    PROJECTORS,
    Array,
    GgufField,
    GgufTensor,
    Reader,
)
from mllm_export.export.stored import PROJECTOR, TOWER
from mllm_export.plan import TensorPlan
from mllm_export.progress import Progress, silent
from mllm_export.spec import ModelSpec
from mllm_export.weights import Shape

_PROJECTOR_TYPES = {"ldp": "ldp", "ldpv2": "ldpv2", "mlp2x_gelu": "mlp"}
"""Catalog name to clip.projector_type."""

_GRID = 24
"""ldp and ldpv2 have this side written into their graphs. Source: tools/mtmd/models/llava.cpp."""

_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_TOWER_NAMES = {
    "vision_model.embeddings.class_embedding": "v.class_embd",
    "vision_model.embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "vision_model.embeddings.position_embedding.weight": "v.position_embd.weight",
    "vision_model.pre_layrnorm.weight": "v.pre_ln.weight",
    "vision_model.pre_layrnorm.bias": "v.pre_ln.bias",
}
_LAYERS = "vision_model.encoder.layers."


def require_mmproj(spec: ModelSpec) -> None:
    """Refuse what llama.cpp's graph cannot compute at all.

    Raises: PlanError naming the part.
    """
    encoder, projector = spec.encoders[0], spec.projector
    if len(spec.encoders) > 1 or encoder.kind != "clip_vit":
        raise PlanError(f"an mmproj holds one clip_vit tower, this model has {encoder.kind}")
    if projector.kind not in _PROJECTOR_TYPES:
        known = ", ".join(_PROJECTOR_TYPES)
        raise PlanError(f"llama.cpp knows no projector '{projector.kind}' (known: {known})")
    if encoder.keep_prefix:
        raise PlanError("llama.cpp's graph drops the class token, this model keeps it")
    if projector.kind.startswith("ldp") and encoder.grid != _GRID:
        raise PlanError(
            f"llama.cpp's {projector.kind} takes {_GRID} x {_GRID} patches only, "
            f"this tower gives {encoder.grid} x {encoder.grid}"
        )
    if encoder.mlp_width == encoder.width:
        raise PlanError(
            f"a tower whose MLP is as wide as itself ({encoder.width}) is misread by llama.cpp, "
            "which then swaps the two MLP weights"
        )


def plan_mmproj_tensors(
    spec: ModelSpec, tower_sources: Mapping[str, str], projector_sources: Mapping[str, str]
) -> tuple[TensorPlan, ...]:
    """One row per tensor of the file.

    Raises: PlanError where llama.cpp has no graph for the model; see `require_mmproj`.
    """
    require_mmproj(spec)
    sources = {
        **{TOWER + name: source for name, source in tower_sources.items()},
        **{PROJECTOR + name: source for name, source in projector_sources.items()},
    }
    return tuple(
        TensorPlan(
            name=stored.tensor.name,
            sources=tuple(sources[name] for name in stored.tensor.sources),
            shape=stored.tensor.shape,
            scheme=stored.scheme,
            size_bytes=stored.size_bytes,
        )
        for stored in _tensors(spec)
    )


def write_mmproj(
    path: Path,
    spec: ModelSpec,
    read_tower: Reader,
    read_projector: Reader,
    progress: Progress = silent,
) -> None:
    """Write the file, a tensor at a time.

    Raises: PlanError where llama.cpp has no graph for the model; see `require_mmproj`.
    """
    require_mmproj(spec)

    def read(name: str) -> Array:
        if name.startswith(TOWER):
            return read_tower(name.removeprefix(TOWER))
        return read_projector(name.removeprefix(PROJECTOR))

    write_gguf(path, mmproj_fields(spec), tuple(_tensors(spec)), read, progress, "mmproj")


def mmproj_fields(spec: ModelSpec) -> tuple[GgufField, ...]:
    """Keys that clip.cpp reads, and the general ones.

    The tower has as many blocks as run. `feature_layer` says that the last one's output is
    meant: without it the library runs one block less.
    """
    encoder, projector = spec.encoders[0], spec.projector
    image = encoder.image
    rows: tuple[tuple[str, object, str], ...] = (
        ("general.architecture", "clip", "STRING"),
        ("general.type", "mmproj", "STRING"),
        ("general.name", spec.name, "STRING"),
        ("general.file_type", file_type("F16"), "UINT32"),
        ("clip.has_vision_encoder", True, "BOOL"),
        ("clip.projector_type", _PROJECTOR_TYPES[projector.kind], "STRING"),
        # Both false is quick_gelu.
        ("clip.use_gelu", encoder.activation != "quick_gelu", "BOOL"),
        ("clip.use_silu", False, "BOOL"),
        ("clip.vision.image_size", image.size_px, "UINT32"),
        ("clip.vision.patch_size", encoder.patch_px, "UINT32"),
        ("clip.vision.embedding_length", encoder.width, "UINT32"),
        ("clip.vision.feed_forward_length", encoder.mlp_width, "UINT32"),
        ("clip.vision.projection_dim", projector.out_width, "UINT32"),
        ("clip.vision.block_count", encoder.run_layers, "UINT32"),
        ("clip.vision.attention.head_count", encoder.heads, "UINT32"),
        ("clip.vision.attention.layer_norm_epsilon", encoder.norm_eps, "FLOAT32"),
        ("clip.vision.feature_layer", [encoder.run_layers], "ARRAY"),
        ("clip.vision.image_mean", list(image.mean), "ARRAY"),
        ("clip.vision.image_std", list(image.std), "ARRAY"),
    )
    return tuple(GgufField(key=key, value=value, kind=kind) for key, value, kind in rows)


def _tensors(spec: ModelSpec) -> Iterator[StoredTensor]:
    """Tower, then projector. The norms after the selected layer must not be there: they run."""
    encoder, projector = spec.encoders[0], spec.projector
    for name, shape in ENCODERS[encoder.kind].parameters(encoder).items():
        yield _stored(_tower_name(name), TOWER + name, shape)
    for name, shape in PROJECTORS[projector.kind].parameters(projector).items():
        # 1x1 and depthwise kernels lose their sides of 1.
        squeezed = tuple(side for side in shape if side != 1)
        yield _stored(_projector_name(projector.kind, name), PROJECTOR + name, squeezed)


def _tower_name(name: str) -> str:
    if not name.startswith(_LAYERS):
        return _TOWER_NAMES[name]
    number, rest = name.removeprefix(_LAYERS).split(".", 1)
    module, ending = rest.rsplit(".", 1)
    return f"v.blk.{number}.{_LAYER_NAMES[module]}.{ending}"


def _projector_name(kind: str, name: str) -> str:
    if kind == "mlp2x_gelu":
        return f"mm.{name}"
    return "mm.model." + name.replace("mlp.mlp.", "mlp.").replace("peg.peg.", "peg.")


def _stored(name: str, source: str, shape: Shape) -> StoredTensor:
    """Matrices and kernels in F16, vectors in F32: a depthwise kernel in F32 aborts the library."""

    def reshaped(values: list[Array]) -> Array:
        return values[0].reshape(shape)

    tensor = GgufTensor(name=name, sources=(source,), shape=shape, transform=reshaped)
    return StoredTensor(tensor=tensor, scheme="F16" if len(shape) > 1 else "F32")
