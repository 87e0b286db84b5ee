"""An encoder alone: plan, graphs, bundle, through the same folder and child processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import filter as fnmatch_filter
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mllm_export.bundle import BundleFile, FileRole, describe_file
from mllm_export.checkpoint import Checkpoint
from mllm_export.embedder import TOKENIZER_FILE, EmbedderManifest, EmbedderPlan
from mllm_export.errors import PlanError
from mllm_export.export.artifact import ARTIFACTS, GraphArtifact, graph_sources
from mllm_export.export.build import tool_versions
from mllm_export.export.embedder_graphs import EmbedderSource, embedder_graph
from mllm_export.export.embedder_parts import EmbedderReading
from mllm_export.export.embedder_tokenizer import write_tokenizer_json
from mllm_export.export.finished import FINISHED, artifact_key, once
from mllm_export.export.forecast import tower_activation_bytes
from mllm_export.export.partial import partial_folder, take_name
from mllm_export.export.tower_job import observes
from mllm_export.export.tower_plan import planned_schemes
from mllm_export.plan import ArtifactPlan, Role
from mllm_export.progress import Progress, silent
from mllm_export.quantize.tower_scheme import tower_scheme
from mllm_export.records import to_json
from mllm_export.source_file import SourceFile
from mllm_export.weights import Dropped

if TYPE_CHECKING:
    from mllm_export.export.target import Target
    from mllm_export.quantize.recipe import Recipe

RECIPE = "f16"
"""What an encoder alone is built with where none is named: towers in float."""

Finish = Callable[[Path, EmbedderManifest], Literal["passed", "unchecked"]]
"""Checks the folder of a bundle that stands; raises to have nothing left behind."""


def plan_embedder(
    reading: EmbedderReading, target: Target, recipe: Recipe, dropped: tuple[Dropped, ...] = ()
) -> EmbedderPlan:
    """Decide everything the build does; no weight is read.

    Raises: PlanError for a recipe that needs calibration, a target that has no format for a
    graph alone, and for a device that is too small.
    """
    spec = reading.spec
    artifacts = tuple(_artifacts(reading, target, recipe))
    used = {s for a in artifacts if a.format == "onnx" for s in planned_schemes(a.tensors).values()}
    if observes(used, recipe.tower_smoothing) or recipe.tower_floor:
        raise PlanError(
            f"recipe '{recipe.name}' calibrates 8-bit activations on pictures, and a text tower "
            "has none: an encoder alone is built without; give --recipe int8"
        )
    int8 = any(tower_scheme(name).kind == "int8" for name in used)
    plan = EmbedderPlan(
        spec=spec,
        target=target.name,
        recipe=recipe.name,
        profile="default",
        vision_engine=target.vision_engine,
        vision_preset=target.vision_preset if int8 else "",
        artifacts=artifacts,
        dropped=tuple(f"{d.source}: {d.why}" for d in dropped),
        device_memory_bytes=sum(a.size_bytes for a in artifacts)
        + tower_activation_bytes(spec.encoder),
    )
    if plan.device_memory_bytes > target.memory_mib << 20:
        raise PlanError(
            f"{spec.name} needs {plan.device_memory_bytes >> 20} MiB on the device, target "
            f"{target.name} allows {target.memory_mib} MiB; choose another target"
        )
    return plan


def _artifacts(reading: EmbedderReading, target: Target, recipe: Recipe) -> Iterator[ArtifactPlan]:
    """Both towers, in the target's first format that holds any graph."""
    formats = (ARTIFACTS[name] for name in target.formats)
    chosen = next((one for one in formats if isinstance(one, GraphArtifact)), None)
    if chosen is None:
        raise PlanError(
            f"target {target.name} builds {', '.join(target.formats)}, of which none holds an "
            "encoder alone; choose a target with onnx or coreml"
        )
    roles: tuple[Role, ...] = ("tower",) if reading.spec.text is None else ("tower", "text_tower")
    graphs = {role: embedder_graph(reading.spec, role) for role in roles}
    for role, graph in graphs.items():
        others = [name for one in graphs.values() if one is not graph for name in one.stored()]
        sources = graph_sources(reading.weights, graph)
        yield chosen.plan_graph(graph, role, sources, target, _for_one(recipe, others))


def _for_one(recipe: Recipe, others: Sequence[str]) -> Recipe:
    """The recipe for one graph: a rule that takes something of the other may take nothing here."""
    return replace(
        recipe,
        tower=tuple(
            replace(rule, optional=rule.optional or bool(fnmatch_filter(others, rule.tensors)))
            for rule in recipe.tower
        ),
    )


def build_embedder(
    plan: EmbedderPlan,
    reading: EmbedderReading,
    checkpoint: Checkpoint,
    out: Path,
    finish: Finish,
    progress: Progress = silent,
) -> EmbedderManifest:
    """Write the bundle `out`; until everything stands and is checked there is no such folder.

    Raises: BuildError for a folder that exists, a full disk, or a stage that died; whatever
    `finish` raises.
    """
    with partial_folder(out, _needed_bytes(plan)) as folder:
        source = EmbedderSource(folder=checkpoint.path, reading=reading)
        sources = cache(lambda: checkpoint.sources(False))
        for artifact in plan.artifacts:
            entry = ARTIFACTS[artifact.format]
            assert isinstance(entry, GraphArtifact), "only such formats are planned"
            write = partial(
                entry.write_graph, source, artifact, folder, plan.vision_preset, progress
            )
            key = partial(_key, plan, artifact, sources)
            once(folder, artifact, key, write)
        if plan.spec.text is not None:
            (folder / TOKENIZER_FILE).parent.mkdir()
            write_tokenizer_json(checkpoint.path, folder / TOKENIZER_FILE)
        draft = _manifest(plan, reading, checkpoint, folder, sources())
        verdict = finish(folder, draft)
        manifest = replace(draft, checked=verdict, files=_files(plan, folder))
        take_name(folder, out, to_json(manifest))
    return manifest


def _key(
    plan: EmbedderPlan, artifact: ArtifactPlan, sources: Callable[[], tuple[SourceFile, ...]]
) -> str:
    return artifact_key(plan, artifact, sources(), tool_versions())


def _manifest(
    plan: EmbedderPlan,
    reading: EmbedderReading,
    checkpoint: Checkpoint,
    folder: Path,
    sources: tuple[SourceFile, ...],
) -> EmbedderManifest:
    from math import exp

    scale = exp(float(checkpoint.read(reading.scale).reshape(()))) if reading.scale else 1.0
    bias = float(checkpoint.read(reading.bias).reshape(())) if reading.bias else 0.0
    return EmbedderManifest(
        model=plan.spec,
        logit_scale=scale,
        logit_bias=bias,
        target=plan.target,
        recipe=plan.recipe,
        profile=plan.profile,
        vision_engine=plan.vision_engine,
        checked="unchecked",
        files=_files(plan, folder),
        sources=sources,
        tools=tool_versions(),
    )


def _needed_bytes(plan: EmbedderPlan) -> int:
    """The artifacts, and the largest one's float graph while it is quantized."""
    return plan.size_bytes + 8 * max(artifact.size_bytes for artifact in plan.artifacts)


def _files(plan: EmbedderPlan, folder: Path) -> tuple[BundleFile, ...]:
    roles: dict[str, FileRole] = {a.path: a.role for a in plan.artifacts}
    roles |= {"tokenizer": "tokenizer", "golden": "golden"}
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    names = [path.relative_to(folder).as_posix() for path in found if path.parent.name != FINISHED]
    return tuple(
        describe_file(folder, name, roles.get(name.split("/", 1)[0], "report")) for name in names
    )
