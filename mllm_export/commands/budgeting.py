"""How verbs spend a memory budget: measure, solve, and plan again with what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mllm_export.errors import RecipeError
from mllm_export.frontier import FrontierPoint, schemes_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from mllm_export.commands.calibrating import Calibration
    from mllm_export.commands.opening import Job
    from mllm_export.plan import Plan
    from mllm_export.progress import Progress
    from mllm_export.quantize.budget import Point


def spend_budget(
    job: Job, budget: str, mmproj: bool, given: Calibration, progress: Progress
) -> Job:
    """The job planned anew within the budget; its plan has the frontier it was chosen from.

    Raises: RecipeError for a budget that is no size, that cannot be met, or a tower that is
    not ONNX.
    """
    from mllm_export.device_tests.curve import Budget, curve_stage
    from mllm_export.export.budget_options import budget_options, fixed_bytes
    from mllm_export.export.child import run_in_child
    from mllm_export.export.family import cover
    from mllm_export.export.make_plan import make_plan
    from mllm_export.quantize.budget import (
        best_within,
        pareto,
        parse_size,
        recipe_of,
        require_met,
    )

    size_bytes = parse_size(budget)
    _require_onnx(job.plan)
    fixed, context = fixed_bytes(job.plan), job.plan.context_tokens
    require_met(budget_options(job.plan.spec, context), fixed, size_bytes)
    source = (job.checkpoint.path, job.checkpoint.asked)
    asked = Budget(size_bytes=size_bytes, fixed_bytes=fixed, context_tokens=context)
    preset = job.target.vision_preset
    curve = run_in_child(
        "sensitivity",
        curve_stage,
        source,
        job.reading,
        preset,
        given.questions,
        asked,
        progress=progress,
    )
    chosen = best_within(curve.points, fixed, size_bytes)
    recipe = recipe_of(chosen.assignment, f"budget-{budget}")
    plan = make_plan(
        job.reading,
        job.target,
        recipe,
        dropped=cover(job.checkpoint, job.reading),
        mmproj=mmproj,
        importance=given.importance,
    )
    points = frontier_points(pareto(curve.points), fixed, chosen)
    return replace(job, recipe=recipe, plan=replace(plan, frontier=points))


def _require_onnx(plan: Plan) -> None:
    tower = plan.artifact("tower")
    if tower is None or tower.format != "onnx":
        what = "no tower" if tower is None else f"a tower in the format {tower.format}"
        raise RecipeError(
            f"target {plan.target} has {what}, whose schemes cannot be measured here; "
            "leave --memory-budget out and choose a recipe"
        )


def frontier_points(
    points: Sequence[Point], fixed: int, chosen: Point
) -> tuple[FrontierPoint, ...]:
    """For the plan: sizes with what is fixed, and a mark at the chosen one."""
    return tuple(
        FrontierPoint(
            size_bytes=one.assignment.size_bytes + fixed,
            predicted_kl=one.assignment.predicted_loss,
            measured_kl=one.measured_loss,
            schemes=tuple((o.group, o.scheme) for o in one.assignment.options),
            chosen=one == chosen,
        )
        for one in points
    )


def frontier_table(points: Sequence[FrontierPoint]) -> Table:
    """Size against loss, predicted and measured, and the schemes of every point."""
    from rich.table import Table

    table = Table(title="What a memory budget buys: mean KL divergence from the original, nats")
    for header in ("memory", "predicted", "measured", "schemes"):
        table.add_column(header)
    for one in points:
        mark = ", chosen" if one.chosen else ""
        table.add_row(
            f"{one.size_bytes / 2**20:.2f} MiB{mark}",
            f"{one.predicted_kl:.2e}",
            f"{one.measured_kl:.2e}",
            schemes_text(one),
        )
    return table
