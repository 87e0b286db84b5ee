"""`mllm-export plan`: what a build would do, tensor by tensor, without a weight read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mllm_export.commands.arguments import (
    BudgetOption,
    CalibrationOption,
    CheckpointArgument,
    ImatrixOption,
    JsonOption,
    MmprojOption,
    RecipeOption,
    TargetOption,
    TowerOption,
)

if TYPE_CHECKING:
    from rich.table import Table

    from mllm_export.plan import ArtifactPlan, Plan


def plan(
    checkpoint: CheckpointArgument,
    target: TargetOption,
    recipe: RecipeOption = None,
    vision_tower: TowerOption = None,
    mmproj: MmprojOption = False,
    memory_budget: BudgetOption = None,
    calibration: CalibrationOption = None,
    imatrix: ImatrixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a build would write, with predicted sizes and memory."""
    from mllm_export.commands.alone import open_alone, plan_alone, refuse_options
    from mllm_export.commands.budgeting import frontier_table, spend_budget
    from mllm_export.commands.calibrating import Calibration
    from mllm_export.commands.opening import plan_job
    from mllm_export.commands.widening import keep_floor
    from mllm_export.records import to_json
    from mllm_export.terminal import ProgressBars, mib, stdout

    alone = open_alone(checkpoint)
    if alone is not None:
        refuse_options(
            checkpoint,
            vision_tower=bool(vision_tower),
            mmproj=mmproj,
            memory_budget=memory_budget is not None,
            imatrix=imatrix is not None,
            calibration=calibration is not None,
        )
        plan_alone(alone, target, recipe, as_json)
        return
    given = Calibration(questions=calibration, imatrix=imatrix)
    job = plan_job(checkpoint, target, recipe, vision_tower, mmproj, given.importance)
    given.require(job.plan)
    if memory_budget is not None:
        with ProgressBars() as progress:
            job = spend_budget(job, memory_budget, mmproj, given, progress)
    if job.recipe.tower_floor:
        with ProgressBars() as progress:
            job = keep_floor(job, mmproj, given, progress)
    given.tell_unused(job, has_budget=memory_budget is not None)
    if as_json:
        typer.echo(to_json(job.plan), nl=False)
        return
    console = stdout()
    if job.plan.frontier:
        console.print(frontier_table(job.plan.frontier))
    for artifact in job.plan.artifacts:
        console.print(artifact_table(artifact))
    for line in summary(job.plan):
        console.print(line)
    console.print(f"Dropped from the checkpoint: {len(job.plan.dropped)} tensors")
    console.print(f"Predicted peak of the build: {mib(job.plan.build_memory_bytes)}")


def summary(plan: Plan) -> tuple[str, ...]:
    """Sizes, how values are chosen, and device memory in three lines."""
    from mllm_export.terminal import mib

    sizes = ", ".join(f"{a.path} {mib(a.size_bytes)} ({a.scheme})" for a in plan.artifacts)
    methods = ", then ".join(plan.decoder_methods) or "round to nearest"
    matrix = {
        "none": "",
        "calibration": ", weighed on calibration",
        "file": ", weighed by --imatrix",
    }
    has_state = plan.spec.decoder.state is not None
    carried = "recurrent state" if has_state else "KV cache"
    kept = "f32" if has_state else plan.kv_type
    return (
        f"Artifacts: {sizes}",
        f"Decoder: {methods}{matrix[plan.decoder_importance]}",
        f"On the device: {mib(plan.device_memory_bytes)} at {plan.context_tokens} tokens of "
        f"context, {carried} {mib(plan.kv_cache_bytes)} of it ({kept})",
    )


def artifact_table(artifact: ArtifactPlan) -> Table:
    """One row per scheme and note, with the tensors it stands for."""
    from rich.table import Table

    from mllm_export.terminal import mib

    table = Table(title=f"{artifact.path}: {len(artifact.tensors)} tensors")
    for header in ("scheme", "tensors", "size", "such as", "note"):
        table.add_column(header)
    groups: dict[tuple[str, str], list[int]] = {}
    first: dict[tuple[str, str], str] = {}
    for tensor in artifact.tensors:
        key = (tensor.scheme, tensor.note)
        groups.setdefault(key, []).append(tensor.size_bytes)
        first.setdefault(key, tensor.name)
    for key, sizes in groups.items():
        table.add_row(key[0], str(len(sizes)), mib(sum(sizes)), first[key], key[1])
    return table
