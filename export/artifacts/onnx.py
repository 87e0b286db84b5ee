"""Tower and projector as one ONNX graph, every tensor stored as the recipe says."""

from __future__ import annotations

from pathlib import Path

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.artifact import FLOAT_TOWER, Work, part_reader
from mllm_export.export.child import run_in_child
from mllm_export.export.family import Reading
from mllm_export.export.target import Target
from mllm_export.export.tower_job import TowerJob
from mllm_export.export.tower_plan import plan_tower_tensors, planned_schemes
from mllm_export.plan import ArtifactPlan
from mllm_export.progress import Progress
from mllm_export.quantize.recipe import Recipe


class OnnxTower:
    """tower.onnx."""

    def plan(self, reading: Reading, target: Target, recipe: Recipe) -> ArtifactPlan:
        """One row per stored initializer."""
        del target
        tensors = plan_tower_tensors(
            reading.spec.vision,
            reading.weights.part("tower"),
            reading.weights.part("projector"),
            recipe.tower_scheme,
            recipe.tower,
            recipe.name,
        )
        return ArtifactPlan(
            role="tower",
            path="tower.onnx",
            format="onnx",
            scheme=recipe.tower_scheme,
            tensors=tensors,
        )

    def write(self, work: Work, artifact: ArtifactPlan, progress: Progress) -> Path | None:
        """The float graph first; a quantized one is made from it."""
        path = work.path(artifact)
        job = tower_job(work, artifact)
        if set(job.schemes.values()) == {"f32"}:
            run_in_child("tower", write_tower_stage, work, path, progress=progress)
            return path
        float_path = work.folder / f"{FLOAT_TOWER}.onnx"
        run_in_child("tower", write_tower_stage, work, float_path, progress=progress)
        run_in_child(
            "quantized tower", quantize_tower_stage, float_path, path, job, progress=progress
        )
        return float_path


def write_tower_stage(work: Work, path: Path, progress: Progress) -> None:
    """Tower and projector as one float32 ONNX graph."""
    from mllm_export.export.formats.onnx import write_tower

    checkpoint = Checkpoint(*work.source)
    weights = work.reading.weights
    write_tower(
        path,
        work.reading.spec.vision,
        part_reader(checkpoint, weights.part("tower")),
        part_reader(checkpoint, weights.part("projector")),
        progress,
    )


def tower_job(work: Work, artifact: ArtifactPlan) -> TowerJob:
    """What the plan asks of the quantized tower."""
    return TowerJob(
        schemes=planned_schemes(artifact.tensors),
        preset=work.plan.vision_preset,
        ranges=work.plan.tower_ranges,
        smoothing=work.plan.tower_smoothing,
        pixels=work.pixels,
    )


def quantize_tower_stage(float_path: Path, path: Path, job: TowerJob, progress: Progress) -> None:
    """The float graph's quantized twin."""
    from mllm_export.export.tower_quantize import quantize_tower

    quantize_tower(float_path, path, job, progress)


ARTIFACT = OnnxTower()
