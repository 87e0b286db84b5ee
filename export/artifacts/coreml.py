"""Tower and projector as a Core ML package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mllm_export.errors import PlanError
from mllm_export.export.artifact import GraphSource, SettledTower, Work, graph_sources
from mllm_export.export.child import run_in_child
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.coreml_plan import plan_coreml_graph
from mllm_export.export.coreml_readme import write_readme
from mllm_export.export.coreml_scheme import coreml_word
from mllm_export.export.family import Reading
from mllm_export.export.graph import Graph, tower_graph
from mllm_export.export.positions import settled
from mllm_export.export.target import Target
from mllm_export.plan import ArtifactPlan, Role
from mllm_export.progress import Progress
from mllm_export.quantize.recipe import Recipe


class CoremlTower:
    """tower.mlpackage, a folder of three files."""

    def plan(self, reading: Reading, target: Target, recipe: Recipe) -> ArtifactPlan:
        """Tower and projector."""
        graph = tower_graph(settled(reading.spec.vision))
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
        """One row per published tensor."""
        options = options_of(target)
        tensors = plan_coreml_graph(
            graph, sources, recipe.tower_scheme, options, recipe.tower, recipe.name
        )
        scheme, _ = coreml_word(recipe.tower_scheme)
        return ArtifactPlan(
            role=role,
            path=f"{graph.name}.mlpackage",
            format="coreml",
            scheme=scheme,
            tensors=tensors,
            deployment=options.deployment,
            image_input=options.image_input and bool(graph.images),
        )

    def write(self, work: Work, artifact: ArtifactPlan, progress: Progress) -> None:
        """The package, and a README that shows how an app calls it."""
        self.write_graph(SettledTower(work=work), artifact, work.folder, "", progress)
        write_readme(work, artifact)

    def write_graph(
        self,
        source: GraphSource,
        artifact: ArtifactPlan,
        folder: Path,
        preset: str,
        progress: Progress,
    ) -> None:
        """Convert, then compress: two processes, so that neither holds the other's memory."""
        del preset
        path, stage = folder / artifact.path, f"{artifact.role} weights"
        run_in_child(artifact.role, convert_stage, source, artifact, path, progress=progress)
        run_in_child(stage, compress_stage, artifact, path, progress=progress)


def options_of(target: Target) -> CoremlOptions:
    """What of a target shapes the program. Raises: PlanError for a target without a system."""
    if not target.deployment:
        raise PlanError(
            f"target {target.name} wants a Core ML tower and does not say for which system; "
            'add a line such as deployment = "iOS18"'
        )
    return CoremlOptions(deployment=target.deployment, image_input=target.image_input)


def convert_stage(
    source: GraphSource, artifact: ArtifactPlan, path: Path, progress: Progress
) -> None:
    """The package with every weight in float16."""
    from mllm_export.export.formats.coreml import write_graph

    role = artifact.role
    assert artifact.deployment, "a Core ML artifact is planned with its system"
    options = CoremlOptions(deployment=artifact.deployment, image_input=artifact.image_input)
    write_graph(path, source.graph(role), source.readers(role), options, progress)


def compress_stage(artifact: ArtifactPlan, path: Path, progress: Progress) -> None:
    """Each weight stored as the plan says."""
    from mllm_export.export.coreml_compress import compress

    del progress
    compress(path, {row.name: row.scheme for row in artifact.tensors})


ARTIFACT = CoremlTower()
