"""Tower and projector as a Core ML package."""

from __future__ import annotations

from mllm_export.checkpoint import Checkpoint
from mllm_export.errors import PlanError
from mllm_export.export.artifact import Work, part_reader
from mllm_export.export.child import run_in_child
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.coreml_plan import plan_coreml_tensors
from mllm_export.export.coreml_readme import write_readme
from mllm_export.export.coreml_scheme import coreml_word
from mllm_export.export.family import Reading
from mllm_export.export.stored import PROJECTOR, TOWER
from mllm_export.export.target import Target
from mllm_export.plan import ArtifactPlan
from mllm_export.progress import Progress
from mllm_export.quantize.recipe import Recipe


class CoremlTower:
    """tower.mlpackage, a folder of three files."""

    def plan(self, reading: Reading, target: Target, recipe: Recipe) -> ArtifactPlan:
        """One row per published tensor."""
        options = options_of(target)
        weights = reading.weights
        sources = {
            **{TOWER + name: source for name, source in weights.part("tower").items()},
            **{PROJECTOR + name: source for name, source in weights.part("projector").items()},
        }
        tensors = plan_coreml_tensors(
            reading.spec.vision,
            sources,
            recipe.tower_scheme,
            options,
            recipe.tower,
            recipe.name,
        )
        scheme, _ = coreml_word(recipe.tower_scheme)
        return ArtifactPlan(
            role="tower",
            path="tower.mlpackage",
            format="coreml",
            scheme=scheme,
            tensors=tensors,
            deployment=options.deployment,
            image_input=options.image_input,
        )

    def write(self, work: Work, artifact: ArtifactPlan, progress: Progress) -> None:
        """Convert, then compress: two processes, so that neither holds the other's memory."""
        run_in_child("tower", write_tower_stage, work, artifact, progress=progress)
        run_in_child("tower weights", compress_tower_stage, work, artifact, progress=progress)
        write_readme(work, artifact)


def options_of(target: Target) -> CoremlOptions:
    """What of a target shapes the program. Raises: PlanError for a target without a system."""
    if not target.deployment:
        raise PlanError(
            f"target {target.name} wants a Core ML tower and does not say for which system; "
            'add a line such as deployment = "iOS18"'
        )
    return CoremlOptions(deployment=target.deployment, image_input=target.image_input)


def write_tower_stage(work: Work, artifact: ArtifactPlan, progress: Progress) -> None:
    """The package with every weight in float16."""
    from mllm_export.export.formats.coreml import write_tower

    checkpoint = Checkpoint(*work.source)
    reading = work.reading
    assert artifact.deployment, "a Core ML artifact is planned with its system"
    write_tower(
        work.path(artifact),
        reading.spec.vision,
        part_reader(checkpoint, reading.weights.part("tower")),
        part_reader(checkpoint, reading.weights.part("projector")),
        CoremlOptions(deployment=artifact.deployment, image_input=artifact.image_input),
        progress,
    )


def compress_tower_stage(work: Work, artifact: ArtifactPlan, progress: Progress) -> None:
    """Each weight stored as the plan says."""
    from mllm_export.export.coreml_compress import compress

    del progress
    compress(work.path(artifact), {row.name: row.scheme for row in artifact.tensors})


ARTIFACT = CoremlTower()
