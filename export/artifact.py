"""The protocol of export/artifacts: how one file of a bundle is planned and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mllm_export.catalog import Catalog
from mllm_export.checkpoint import Asked, Checkpoint
from mllm_export.errors import PlanError
from mllm_export.export.family import Reading
from mllm_export.export.graph import Graph, tower_graph
from mllm_export.export.positions import settled, settled_reader
from mllm_export.export.target import Target
from mllm_export.records import record

if TYPE_CHECKING:
    from mllm_export.export.parts import Array, Reader
    from mllm_export.plan import ArtifactPlan, Plan, Role
    from mllm_export.progress import Progress
    from mllm_export.quantize.inputs import ObservedLayer
    from mllm_export.quantize.recipe import Recipe
    from mllm_export.weights import WeightMap

Source = tuple[Path, Asked]
"""Where a checkpoint is: its folder, and what --vision-tower said."""

FLOAT_TOWER = "tower.float"
"""What the name of a file begins with that is for the checks alone, never part of the bundle."""


Observe = Callable[[bool], "Iterator[ObservedLayer]"]
"""The original's decoder over calibration sequences, a layer at a time and the head last; True:
only the diagonal of each layer's second moments. It can be sent to another process."""


@record
class Calibrated:
    """What the decoder can be calibrated with."""

    observe: Observe | None = None
    key: str = ""
    """Digest of what `observe` runs on."""
    imatrix: Path | None = None
    """An importance matrix that was given, in any of upstream's formats."""


@record
class Work:
    """What every artifact is written from; it can be sent to another process."""

    plan: Plan
    reading: Reading
    source: Source
    folder: Path
    """Where the bundle grows."""
    pixels: Path | None = None
    """Calibration pictures as a .npy file f32[N, 3, S, S], where the plan needs them."""
    calibrated: Calibrated = Calibrated()

    def path(self, artifact: ArtifactPlan) -> Path:
        """Where the artifact goes."""
        return self.folder / artifact.path


class Artifact(Protocol):
    """One file of export/artifacts; its name is the artifact's format."""

    def plan(self, reading: Reading, target: Target, recipe: Recipe) -> ArtifactPlan:
        """Every stored tensor; no weight is read. Raises: PlanError, RecipeError."""

    def write(self, work: Work, artifact: ArtifactPlan, progress: Progress) -> Path | None:
        """Write it in a process of its own.

        Returns the float graph that it was made from, where the checks can compare with one.
        """


class GraphSource(Protocol):
    """Graphs of a model and their weights, by role; it can be sent to another process."""

    def graph(self, role: Role) -> Graph:
        """What that artifact computes."""

    def readers(self, role: Role) -> tuple[Reader, ...]:
        """Published names of each of the graph's parts, in order, to stored values."""


@runtime_checkable
class GraphArtifact(Protocol):
    """An artifact format that holds any graph of one input."""

    def plan_graph(
        self,
        graph: Graph,
        role: Role,
        sources: Mapping[str, str],
        target: Target,
        recipe: Recipe,
    ) -> ArtifactPlan:
        """Every stored tensor; no weight is read.

        `sources` gives each tensor's name in the checkpoint, by its stored name.
        Raises: PlanError, RecipeError.
        """

    def write_graph(
        self,
        source: GraphSource,
        artifact: ArtifactPlan,
        folder: Path,
        preset: str,
        progress: Progress,
    ) -> None:
        """Write it into `folder`, in a process of its own; `preset` is for 8-bit products."""


ARTIFACTS: Catalog[Artifact] = Catalog(
    "mllm_export.export.artifacts", "ARTIFACT", "artifact format", PlanError
)


def part_reader(checkpoint: Checkpoint, sources: Mapping[str, str]) -> Reader:
    """Published names of one part to stored values."""

    def read(name: str) -> Array:
        return checkpoint.read(sources[name])

    return read


def graph_sources(weights: WeightMap, graph: Graph) -> dict[str, str]:
    """Names in the checkpoint by the names in a graph, whose prefixes are those of the parts."""
    return {
        prefix + name: source
        for prefix, _ in graph.parts
        for name, source in weights.part(prefix.removesuffix(".")).items()
    }


def graph_readers(checkpoint: Checkpoint, weights: WeightMap, graph: Graph) -> tuple[Reader, ...]:
    """Of each of a graph's parts, in order."""
    prefixes = (prefix for prefix, _ in graph.parts)
    return tuple(part_reader(checkpoint, weights.part(p.removesuffix("."))) for p in prefixes)


@record
class SettledTower:
    """The one graph of a model that answers, its positions at the size it runs at.

    See `GraphSource`.
    """

    work: Work

    def graph(self, role: Role) -> Graph:
        """Tower and projector."""
        del role
        return tower_graph(settled(self.work.reading.spec.vision))

    def readers(self, role: Role) -> tuple[Reader, ...]:
        """Of the tower, then of the projector."""
        checkpoint = Checkpoint(*self.work.source)
        tower, *others = graph_readers(checkpoint, self.work.reading.weights, self.graph(role))
        return settled_reader(self.work.reading.spec.vision, tower), *others
