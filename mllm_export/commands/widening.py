"""How verbs keep layers of the tower wider that lose too much: measure, and plan again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mllm_export.errors import RecipeError

if TYPE_CHECKING:
    from mllm_export.commands.calibrating import Calibration
    from mllm_export.commands.opening import Job
    from mllm_export.progress import Progress


def keep_floor(job: Job, mmproj: bool, given: Calibration, progress: Progress) -> Job:
    """The job planned anew where its recipe's `tower_floor` asks for wider layers.

    Raises: RecipeError for a tower that is not ONNX, or a floor that cannot be met.
    """
    from mllm_export.device_tests.tower_floor import floor_stage
    from mllm_export.export.child import run_in_child
    from mllm_export.export.family import cover
    from mllm_export.export.make_plan import make_plan
    from mllm_export.export.tower_job import TowerJob
    from mllm_export.export.tower_plan import planned_schemes

    floor, plan = job.recipe.tower_floor, job.plan
    tower = plan.artifact("tower")
    if not floor or tower is None:
        return job
    if tower.format != "onnx":
        raise RecipeError(
            f"recipe '{job.recipe.name}': tower_floor is measured on ONNX towers, target "
            f"{plan.target} has {tower.format}; set it to 0, or choose another target"
        )
    rules = run_in_child(
        "tower floor",
        floor_stage,
        (job.checkpoint.path, job.checkpoint.asked),
        job.reading,
        TowerJob(
            schemes=planned_schemes(tower.tensors),
            preset=plan.vision_preset,
            ranges=plan.tower_ranges,
            smoothing=plan.tower_smoothing,
        ),
        floor,
        given.questions,
        progress=progress,
    )
    if not rules:
        return job
    recipe = replace(job.recipe, tower=(*rules, *job.recipe.tower))
    planned = make_plan(
        job.reading,
        job.target,
        recipe,
        dropped=cover(job.checkpoint, job.reading),
        mmproj=mmproj,
        importance=given.importance,
    )
    return replace(job, recipe=recipe, plan=replace(planned, frontier=plan.frontier))
