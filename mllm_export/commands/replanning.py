"""What a finished bundle was planned as: planned again, and held against what it remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mllm_export.errors import BundleError, PlanError
from mllm_export.planned import recall
from mllm_export.records import record

if TYPE_CHECKING:
    from mllm_export.bundle import Bundle
    from mllm_export.checkpoint import Checkpoint
    from mllm_export.export.family import Reading
    from mllm_export.plan import Plan


@record
class Replanned:
    """The bundle's plan, or why it cannot be made again."""

    plan: Plan | None
    """None where the built-in target and recipe of those names give none, or another."""
    notes: tuple[str, ...] = ()
    """What the tensors' schemes are held against in its place."""


def replan(bundle: Bundle, checkpoint: Checkpoint) -> Replanned:
    """Plan as this version's own target and recipe say, which may not be what it was built by.

    Raises: BundleError when the checkpoint is another model.
    """
    from mllm_export.export.family import read_spec

    reading = read_spec(checkpoint)
    found, model = reading.spec, bundle.manifest.model
    if found.decoder != model.decoder or found.encoders != model.encoders:
        raise BundleError(
            f"{checkpoint.path} is not what {bundle.folder} was built from: sizes differ; "
            "name the checkpoint it was built from with --against"
        )
    try:
        plan = _planned_again(bundle, reading, checkpoint)
    except PlanError as failure:
        note = f"weights: {_instead(bundle)}; no plan comes of the built-in files ({failure})"
        return Replanned(plan=None, notes=(note,))
    other = _otherwise(bundle, plan)
    return Replanned(plan=None, notes=(other,)) if other else Replanned(plan=plan)


def _planned_again(bundle: Bundle, reading: Reading, checkpoint: Checkpoint) -> Plan:
    from mllm_export.export.family import cover
    from mllm_export.export.make_plan import make_plan
    from mllm_export.export.target import load_target
    from mllm_export.quantize.recipe import load_recipe

    manifest = bundle.manifest
    dropped = cover(checkpoint, reading)
    return make_plan(
        reading,
        load_target(manifest.target),
        load_recipe(manifest.recipe),
        dropped=dropped,
        mmproj=bundle.find("mmproj") is not None,
        profile=manifest.profile,
        importance=manifest.decoder_importance,
    )


def _instead(bundle: Bundle) -> str:
    if bundle.manifest.planned:
        return "schemes are held against what bundle.json says was planned"
    return "schemes are held against no plan, for bundle.json says none"


def _otherwise(bundle: Bundle, plan: Plan) -> str:
    """How the plan differs from the bundle's; nothing where it does not, or is not known."""
    from mllm_export.export.planned_storage import planned_storage

    manifest, storage = bundle.manifest, planned_storage(plan)
    said = recall(manifest.planned, storage)
    others = [name for name, (scheme, _) in storage.items() if said.get(name) != scheme]
    if not manifest.planned or not others:
        return ""
    first = others[0]
    return (
        f"weights: {_instead(bundle)}; the built-in recipe '{manifest.recipe}' for "
        f"{manifest.target} plans {len(others)} tensors otherwise ({first}: {storage[first][0]}, "
        f"the bundle's {said.get(first, 'none')}), so it was built by a file of that name, by a "
        "recipe that the build widened, or by another version"
    )
