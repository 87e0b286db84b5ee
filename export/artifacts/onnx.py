"""Tower and projector as one ONNX graph, every tensor stored as the recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.artifact import FLOAT_TOWER, GraphSource, Work, graph_sources, part_reader
from mllm_export.export.child import run_in_child
from mllm_export.export.family import Reading
from mllm_export.export.graph import Graph, tower_graph
from mllm_export.export.onnx_stream import data_path
from mllm_export.export.target import Target
from mllm_export.export.tower_job import TowerJob
from mllm_export.export.tower_plan import plan_graph_tensors, planned_schemes
from mllm_export.export.tower_steps import steps_path
from mllm_export.plan import ArtifactPlan, Role
from mllm_export.progress import Progress
from mllm_export.quantize.recipe import Recipe


class OnnxTower:
    """tower.onnx."""

    def plan(self, reading: Reading, target: Target, recipe: Recipe) -> ArtifactPlan:
        """Tower and projector."""
        graph = tower_graph(reading.spec.vision)
        return self.plan_graph(
            graph, "tower", graph_sources(reading.weights, graph), target, recipe
        )

    def plan_graph(
        self,
        graph: Graph,
        role: Role,
        sources: Mapping[str, str],
        target: Target,
        recipe: Recipe,
    ) -> ArtifactPlan:
        """One row per stored initializer."""
        del target
        tensors = plan_graph_tensors(
            graph.parts, sources, recipe.tower_scheme, recipe.tower, recipe.name
        )
        return ArtifactPlan(
            role=role,
            path=f"{graph.name}.onnx",
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

    def write_graph(
        self,
        source: GraphSource,
        artifact: ArtifactPlan,
        folder: Path,
        preset: str,
        progress: Progress,
    ) -> None:
        """The float graph first; a quantized one is made from it."""
        path, role = folder / artifact.path, artifact.role
        job = TowerJob(schemes=planned_schemes(artifact.tensors), preset=preset)
        if set(job.schemes.values()) == {"f32"}:
            run_in_child(role, write_graph_stage, source, role, path, progress=progress)
            return
        plain = folder / f"{FLOAT_TOWER}.{artifact.path}"
        run_in_child(role, write_graph_stage, source, role, plain, progress=progress)
        stage = f"quantized {role}"
        run_in_child(stage, quantize_tower_stage, plain, path, job, progress=progress)
        plain.unlink()
        # Past what a message can hold, weights stand in a file of their own.
        data_path(plain).unlink(missing_ok=True)
        steps_path(plain).unlink()


def write_graph_stage(source: GraphSource, role: Role, path: Path, progress: Progress) -> None:
    """One graph in float32."""
    from mllm_export.export.formats.onnx import write_graph

    write_graph(path, source.graph(role), source.readers(role), progress)


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
    from mllm_export.export.tower_steps import write_steps

    write_steps(float_path, quantize_tower(float_path, path, job, progress))


ARTIFACT = OnnxTower()
