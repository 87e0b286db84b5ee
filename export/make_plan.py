"""From spec, target and recipe to the plan; no weight is read."""

from __future__ import annotations

from mllm_export.errors import PlanError
from mllm_export.export.decoder_plan import plan_decoder_tensors
from mllm_export.export.family import Reading
from mllm_export.export.formats.mmproj import plan_mmproj_tensors
from mllm_export.export.target import Target
from mllm_export.export.tower_plan import plan_tower_tensors
from mllm_export.plan import ArtifactPlan, Plan, TensorPlan
from mllm_export.quantize.recipe import Recipe
from mllm_export.spec import DecoderSpec, EncoderSpec, ModelSpec
from mllm_export.weights import Dropped

_FLOAT_BYTES = 4
_KV_BYTES = 2
"""The KV cache is float16."""

_PROCESS_BYTES = 1100 << 20
"""A Python process with torch, transformers, onnxruntime and llama.cpp loaded, and a small model
in its hands; measured on Linux x86-64."""


def make_plan(
    reading: Reading,
    target: Target,
    recipe: Recipe,
    *,
    dropped: tuple[Dropped, ...] = (),
    mmproj: bool = False,
    profile: str = "default",
) -> Plan:
    """Decide everything `build` does.

    Raises: PlanError when the model does not fit the target; RecipeError for a rule that
    matches nothing.
    """
    spec = reading.spec
    context = min(target.context_tokens, spec.decoder.context_tokens)
    artifacts = [_tower(reading, recipe), _decoder(reading, recipe)]
    if mmproj:
        artifacts.append(_mmproj(reading))
    kv_bytes = kv_cache_bytes(spec.decoder, context)
    plan = Plan(
        spec=spec,
        target=target.name,
        recipe=recipe.name,
        profile=profile,
        context_tokens=context,
        vision_preset=target.vision_preset if artifacts[0].scheme == "w8a8" else "",
        artifacts=tuple(artifacts),
        dropped=tuple(f"{d.source}: {d.why}" for d in dropped),
        kv_cache_bytes=kv_bytes,
        device_memory_bytes=_device_memory(spec, artifacts, kv_bytes),
        build_memory_bytes=_build_memory(spec, artifacts, kv_bytes),
    )
    _refuse_what_does_not_fit(plan, target)
    return plan


def kv_cache_bytes(decoder: DecoderSpec, context_tokens: int) -> int:
    """Keys and values of every layer over the whole context, in float16."""
    return 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * context_tokens * _KV_BYTES


def tower_activation_bytes(encoder: EncoderSpec) -> int:
    """Largest activations of one layer: the attention scores, the MLP and the residual stream."""
    tokens = encoder.grid**2 + encoder.prefix_tokens
    scores = encoder.heads * tokens**2
    stream = tokens * (2 * encoder.width + 2 * encoder.mlp_width)
    return (2 * scores + stream) * _FLOAT_BYTES


def _tower(reading: Reading, recipe: Recipe) -> ArtifactPlan:
    spec = reading.spec
    scheme = recipe.tower_scheme
    tensors = plan_tower_tensors(
        spec.encoders[0],
        spec.projector,
        reading.weights.part("tower"),
        reading.weights.part("projector"),
        scheme,
    )
    return ArtifactPlan(
        role="tower", path="tower.onnx", format="onnx", scheme=scheme, tensors=tensors
    )


def _decoder(reading: Reading, recipe: Recipe) -> ArtifactPlan:
    tensors: tuple[TensorPlan, ...] = plan_decoder_tensors(
        reading.spec.decoder, recipe, reading.weights.part("decoder")
    )
    return ArtifactPlan(
        role="decoder",
        path="decoder.gguf",
        format="gguf",
        scheme=recipe.decoder_scheme,
        tensors=tensors,
    )


def _mmproj(reading: Reading) -> ArtifactPlan:
    tensors = plan_mmproj_tensors(
        reading.spec, reading.weights.part("tower"), reading.weights.part("projector")
    )
    return ArtifactPlan(
        role="mmproj", path="mmproj.gguf", format="mmproj", scheme="F16", tensors=tensors
    )


def _device_memory(spec: ModelSpec, artifacts: list[ArtifactPlan], kv_bytes: int) -> int:
    weights = sum(a.size_bytes for a in artifacts if a.role != "mmproj")
    activations = sum(tower_activation_bytes(encoder) for encoder in spec.encoders)
    logits = spec.decoder.vocab * _FLOAT_BYTES * (spec.image_tokens + 64)
    return weights + kv_bytes + activations + logits


def _build_memory(spec: ModelSpec, artifacts: list[ArtifactPlan], kv_bytes: int) -> int:
    """Peak of the largest stage, which is the check of the decoder.

    It holds the export's decoder with its KV cache beside the original's embedding, head and one
    layer in float32. Measured for MobileVLM_V2-1.7B at int4: 2,968 MiB; of the reference: 1,234.
    """
    decoder = next(a for a in artifacts if a.role == "decoder")
    elements = sum(_elements(t) for t in decoder.tensors)
    table = spec.decoder.vocab * spec.decoder.width
    layer = (elements - table) // spec.decoder.layers
    original = (2 * table + layer) * _FLOAT_BYTES
    return _PROCESS_BYTES + decoder.size_bytes + kv_bytes + original


def _elements(tensor: TensorPlan) -> int:
    count = 1
    for side in tensor.shape:
        count *= side
    return count


def _refuse_what_does_not_fit(plan: Plan, target: Target) -> None:
    limit_bytes = target.memory_mib << 20
    if plan.device_memory_bytes > limit_bytes:
        raise PlanError(
            f"{plan.spec.name} at {plan.recipe} needs {plan.device_memory_bytes >> 20} MiB on the "
            f"device, target {target.name} allows {target.memory_mib} MiB; "
            "choose a smaller recipe or another target"
        )
