"""Tower and projector as one ONNX graph, in float32 or with INT8 matrix products."""

from __future__ import annotations

from pathlib import Path

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.artifact import FLOAT_TOWER, Work, part_reader
from mllm_export.export.child import run_in_child
from mllm_export.export.family import Reading
from mllm_export.export.target import Target
from mllm_export.export.tower_plan import plan_tower_tensors
from mllm_export.plan import ArtifactPlan
from mllm_export.progress import Progress
from mllm_export.quantize.recipe import Recipe


class OnnxTower:
    """tower.onnx."""

    def plan(self, reading: Reading, target: Target, recipe: Recipe) -> ArtifactPlan:
        """One row per stored initializer."""
        del target
        tensors = plan_tower_tensors(
            reading.spec.encoders[0],
            reading.spec.projector,
            reading.weights.part("tower"),
            reading.weights.part("projector"),
            recipe.tower_scheme,
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
        preset = work.plan.vision_preset
        if not preset:
            run_in_child("tower", write_tower_stage, work, path, progress=progress)
            return path
        float_path = work.folder / f"{FLOAT_TOWER}.onnx"
        run_in_child("tower", write_tower_stage, work, float_path, progress=progress)
        run_in_child(
            "tower int8", quantize_tower_stage, float_path, path, preset, progress=progress
        )
        return float_path


def write_tower_stage(work: Work, path: Path, progress: Progress) -> None:
    """Tower and projector as one float32 ONNX graph."""
    from mllm_export.export.formats.onnx import write_tower

    checkpoint = Checkpoint(*work.source)
    weights = work.reading.weights
    write_tower(
        path,
        work.reading.spec.encoders[0],
        work.reading.spec.projector,
        part_reader(checkpoint, weights.part("tower")),
        part_reader(checkpoint, weights.part("projector")),
        progress,
    )


def quantize_tower_stage(float_path: Path, path: Path, preset: str, progress: Progress) -> None:
    """The float graph's INT8 twin."""
    from mllm_export.export.tower_int8 import quantize_tower

    quantize_tower(float_path, path, preset, progress)


ARTIFACT = OnnxTower()
