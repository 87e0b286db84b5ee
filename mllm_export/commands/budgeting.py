"""How verbs spend a memory budget: measure, solve, and plan again with what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from mllm_export.commands.calibrating import Calibration
    from mllm_export.commands.opening import Job
    from mllm_export.plan import Plan
    from mllm_export.progress import Progress
    from mllm_export.quantize.budget import Assignment, Curve


def spend_budget(
    job: Job, budget: str, mmproj: bool, given: Calibration, progress: Progress
) -> tuple[Job, Table]:
    """The job planned anew within the budget, and the frontier that it was chosen from.

    Raises: RecipeError for a budget that is no size or that cannot be met.
    """
    from mllm_export.device_tests.curve import curve_stage
    from mllm_export.export.child import run_in_child
    from mllm_export.export.family import cover
    from mllm_export.export.make_plan import make_plan
    from mllm_export.quantize.budget import parse_size, recipe_of, spend

    size_bytes = parse_size(budget)
    source = (job.checkpoint.path, job.checkpoint.asked)
    preset = job.target.vision_preset
    curve = run_in_child(
        "sensitivity", curve_stage, source, job.reading, preset, given.questions, progress=progress
    )
    fixed = fixed_bytes(job.plan)
    chosen = spend(curve.options, fixed, size_bytes)
    dropped = cover(job.checkpoint, job.reading)
    recipe = recipe_of(chosen, f"budget-{budget}")
    plan = make_plan(
        job.reading,
        job.target,
        recipe,
        dropped=dropped,
        mmproj=mmproj,
        importance=given.importance,
    )
    return replace(job, plan=plan), frontier_table(curve, fixed, chosen)


def fixed_bytes(plan: Plan) -> int:
    """What stays whatever is chosen: KV cache, activations, and tensors that are no products."""
    from mllm_export.export.tower_plan import tower_tensors
    from mllm_export.quantize.tower_scheme import ENDINGS

    products = {
        tensor.name + ending
        for tensor in tower_tensors(plan.spec.vision)
        if tensor.is_product
        for ending in ("", *ENDINGS)
    }
    tower, decoder = plan.artifact("tower"), plan.artifact("decoder")
    spent = sum(row.size_bytes for row in (tower.tensors if tower else ()) if row.name in products)
    rows = decoder.tensors if decoder else ()
    spent += sum(row.size_bytes for row in rows if len(row.shape) > 1)
    return plan.device_memory_bytes - spent


def frontier_table(curve: Curve, fixed: int, chosen: Assignment) -> Table:
    """Size against loss, predicted and measured, and the schemes of every point."""
    from rich.table import Table

    table = Table(title="What a memory budget buys: mean KL divergence from the original, nats")
    for header in ("MiB", "predicted", "measured", "schemes"):
        table.add_column(header)
    for point in curve.points:
        one = point.assignment
        row = (f"{(one.size_bytes + fixed) / 2**20:.1f}", f"{one.predicted_loss:.2e}")
        table.add_row(*row, f"{point.measured_loss:.2e}", _schemes(one))
    size = f"{chosen.size_bytes / 2**20:.1f}"
    table.add_row(size, f"{chosen.predicted_loss:.2e}", "chosen", _schemes(chosen))
    return table


def _schemes(assignment: Assignment) -> str:
    return " ".join(f"{one.group}={one.scheme}" for one in assignment.options)
