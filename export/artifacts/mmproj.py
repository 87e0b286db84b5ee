"""Tower and projector for llama.cpp's own multimodal tools, as GGUF."""

from __future__ import annotations

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.artifact import Work, part_reader
from mllm_export.export.child import run_in_child
from mllm_export.export.family import Reading
from mllm_export.export.formats.mmproj import plan_mmproj_tensors
from mllm_export.export.target import Target
from mllm_export.plan import ArtifactPlan
from mllm_export.progress import Progress
from mllm_export.quantize.recipe import Recipe


class Mmproj:
    """mmproj.gguf, in float16 whatever the recipe: llama.cpp's multimodal tools want it so."""

    def plan(self, reading: Reading, target: Target, recipe: Recipe) -> ArtifactPlan:
        """One row per tensor. Raises: PlanError where llama.cpp lacks a part."""
        del target, recipe
        tensors = plan_mmproj_tensors(
            reading.spec, reading.weights.part("tower"), reading.weights.part("projector")
        )
        return ArtifactPlan(
            role="mmproj", path="mmproj.gguf", format="mmproj", scheme="F16", tensors=tensors
        )

    def write(self, work: Work, artifact: ArtifactPlan, progress: Progress) -> None:
        """Straight from the checkpoint's tensors."""
        run_in_child("mmproj", write_mmproj_stage, work, artifact, progress=progress)


def write_mmproj_stage(work: Work, artifact: ArtifactPlan, progress: Progress) -> None:
    """Tower and projector for llama.cpp's own multimodal tools."""
    from mllm_export.export.formats.mmproj import write_mmproj

    checkpoint = Checkpoint(*work.source)
    weights = work.reading.weights
    write_mmproj(
        work.path(artifact),
        work.reading.spec,
        part_reader(checkpoint, weights.part("tower")),
        part_reader(checkpoint, weights.part("projector")),
        progress,
    )


ARTIFACT = Mmproj()
