"""From spec, target and recipe to the plan; no weight is read."""

from __future__ import annotations

from dataclasses import replace

from mllm_export.errors import PlanError
from mllm_export.export.artifact import ARTIFACTS
from mllm_export.export.decoder_plan import importance_of
from mllm_export.export.family import Reading
from mllm_export.export.forecast import build_memory_bytes, device_memory_bytes, kv_cache_bytes
from mllm_export.export.target import Target
from mllm_export.export.tower_job import observes
from mllm_export.export.tower_plan import planned_schemes
from mllm_export.kv_cache import require_fits
from mllm_export.plan import Importance, Plan
from mllm_export.quantize.recipe import Recipe
from mllm_export.quantize.tower_scheme import tower_scheme
from mllm_export.spec import ModelSpec
from mllm_export.weights import Dropped


def make_plan(
    reading: Reading,
    target: Target,
    recipe: Recipe,
    *,
    dropped: tuple[Dropped, ...] = (),
    mmproj: bool = False,
    profile: str = "default",
    importance: Importance = "none",
) -> Plan:
    """Decide everything `build` does.

    `importance` is what the user gave for the decoder's columns beside the recipe.

    Raises: PlanError when the model does not fit the target; RecipeError for a rule that
    matches nothing.
    """
    spec = reading.spec
    recipe = replace(recipe, decoder_importance=recipe.decoder_importance or importance != "none")
    _require_kv_cache(spec, recipe)
    context = min(target.context_tokens, spec.decoder.context_tokens)
    formats = (*target.formats, *(("mmproj",) if mmproj else ()))
    artifacts = tuple(ARTIFACTS[name].plan(reading, target, recipe) for name in formats)
    kv_bytes = kv_cache_bytes(spec.decoder, context, recipe.kv_cache)
    used = {s for a in artifacts if a.format == "onnx" for s in planned_schemes(a.tensors).values()}
    int8 = any(tower_scheme(name).kind == "int8" for name in used)
    plan = Plan(
        spec=spec,
        target=target.name,
        recipe=recipe.name,
        profile=profile,
        context_tokens=context,
        vision_preset=target.vision_preset if int8 else "",
        tower_ranges=recipe.tower_ranges,
        tower_smoothing=recipe.tower_smoothing,
        needs_pictures=observes(used, recipe.tower_smoothing),
        decoder_methods=recipe.decoder_methods,
        decoder_importance=importance_of(spec.decoder, recipe, artifacts, importance),
        kv_type=recipe.kv_cache,
        artifacts=artifacts,
        dropped=tuple(f"{d.source}: {d.why}" for d in dropped),
        kv_cache_bytes=kv_bytes,
        device_memory_bytes=device_memory_bytes(spec, artifacts, kv_bytes),
        build_memory_bytes=build_memory_bytes(spec, artifacts, kv_bytes),
    )
    _refuse_what_does_not_fit(plan, target)
    return plan


def _require_kv_cache(spec: ModelSpec, recipe: Recipe) -> None:
    if spec.decoder.state is not None and recipe.kv_cache != "f16":
        raise PlanError(
            f"recipe '{recipe.name}': kv_cache = \"{recipe.kv_cache}\", but {spec.name} carries a "
            "recurrent state in float32, no keys and values; take the line out"
        )
    require_fits(recipe.kv_cache, spec.decoder.head_dim)


def _refuse_what_does_not_fit(plan: Plan, target: Target) -> None:
    limit_bytes = target.memory_mib << 20
    if plan.device_memory_bytes > limit_bytes:
        raise PlanError(
            f"{plan.spec.name} at {plan.recipe} needs {plan.device_memory_bytes >> 20} MiB on the "
            f"device, target {target.name} allows {target.memory_mib} MiB; "
            "choose a smaller recipe or another target"
        )
