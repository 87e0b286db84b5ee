"""An encoder alone: plan, graphs, bundle, through the same folder and child processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mllm_export.bundle import BundleFile, FileRole, describe_file
from mllm_export.checkpoint import Checkpoint
from mllm_export.embedder import (
    IMAGE_FILE,
    TEXT_FILE,
    TOKENIZER_FILE,
    EmbedderManifest,
    EmbedderPlan,
)
from mllm_export.errors import PlanError
from mllm_export.export.artifact import part_reader
from mllm_export.export.build import sync, tool_versions
from mllm_export.export.child import run_in_child
from mllm_export.export.embedder_graphs import image_graph, text_graph
from mllm_export.export.embedder_parts import EmbedderReading
from mllm_export.export.embedder_tokenizer import write_tokenizer_json
from mllm_export.export.forecast import tower_activation_bytes
from mllm_export.export.graph import Graph
from mllm_export.export.partial import partial_folder
from mllm_export.export.stored import stored_shape
from mllm_export.plan import ArtifactPlan, Role, TensorPlan
from mllm_export.progress import Progress, silent
from mllm_export.records import to_json
from mllm_export.weights import Dropped

if TYPE_CHECKING:
    from mllm_export.export.target import Target
    from mllm_export.quantize.recipe import Recipe

RECIPE = "f16"
"""Of the built-in recipes the one that leaves towers in float32."""

Finish = Callable[[Path, EmbedderManifest], Literal["passed", "unchecked"]]
"""Checks the folder of a bundle that stands; raises to have nothing left behind."""


def plan_embedder(
    reading: EmbedderReading, target: Target, recipe: Recipe, dropped: tuple[Dropped, ...] = ()
) -> EmbedderPlan:
    """Decide everything the build does; no weight is read.

    Raises: PlanError for a recipe that quantizes towers, and for a device that is too small.
    """
    spec = reading.spec
    if recipe.tower_scheme != "f32" or recipe.tower:
        raise PlanError(
            f"recipe '{recipe.name}' stores towers as {recipe.tower_scheme}; an encoder alone is "
            f"built in f32 only, give --recipe {RECIPE}"
        )
    graphs: list[tuple[Role, str, Graph]] = [("tower", IMAGE_FILE, image_graph(spec))]
    if spec.text is not None:
        graphs.append(("text_tower", TEXT_FILE, text_graph(spec.text)))
    sources = {t.part: reading.weights.part(t.part) for t in reading.weights.takes}
    artifacts = tuple(_artifact(role, path, graph, sources) for role, path, graph in graphs)
    size_bytes = sum(artifact.size_bytes for artifact in artifacts)
    plan = EmbedderPlan(
        spec=spec,
        target=target.name,
        recipe=recipe.name,
        profile="default",
        vision_preset="",
        artifacts=artifacts,
        dropped=tuple(f"{d.source}: {d.why}" for d in dropped),
        device_memory_bytes=size_bytes + tower_activation_bytes(spec.encoder),
    )
    if plan.device_memory_bytes > target.memory_mib << 20:
        raise PlanError(
            f"{spec.name} needs {plan.device_memory_bytes >> 20} MiB on the device, target "
            f"{target.name} allows {target.memory_mib} MiB; choose another target"
        )
    return plan


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
    with partial_folder(out, plan.size_bytes) as folder:
        for artifact in plan.artifacts:
            run_in_child(
                artifact.role, write_graph_stage, checkpoint.path, reading, artifact, folder,
                progress=progress,
            )  # fmt: skip
        if plan.spec.text is not None:
            (folder / TOKENIZER_FILE).parent.mkdir()
            write_tokenizer_json(checkpoint.path, folder / TOKENIZER_FILE)
        draft = _manifest(plan, reading, checkpoint, folder)
        verdict = finish(folder, draft)
        manifest = replace(draft, checked=verdict, files=_files(plan, folder))
        (folder / "bundle.json").write_text(to_json(manifest), encoding="utf-8")
        sync(folder)
        folder.rename(out)
    return manifest


def write_graph_stage(
    source: Path, reading: EmbedderReading, artifact: ArtifactPlan, folder: Path, progress: Progress
) -> None:
    """One tower as ONNX."""
    from mllm_export.export.formats.onnx import write_graph

    checkpoint, spec = Checkpoint(source), reading.spec
    parts = ("text",) if artifact.role == "text_tower" else ("tower", "head")
    is_text = artifact.role == "text_tower" and spec.text is not None
    graph = text_graph(spec.text) if is_text and spec.text else image_graph(spec)
    readers = [part_reader(checkpoint, reading.weights.part(part)) for part in parts]
    write_graph(folder / artifact.path, graph, readers, progress)


def _artifact(
    role: Role, path: str, graph: Graph, sources: Mapping[str, Mapping[str, str]]
) -> ArtifactPlan:
    tensors = tuple(
        TensorPlan(
            name=prefix + name,
            sources=(sources[prefix.removesuffix(".")][name],),
            shape=stored_shape(name, shape),
            scheme="f32",
            size_bytes=4 * _count(shape),
        )
        for prefix, parameters in graph.parts
        for name, shape in parameters.items()
    )
    return ArtifactPlan(role=role, path=path, format="onnx", scheme="f32", tensors=tensors)


def _count(shape: tuple[int, ...]) -> int:
    from math import prod

    return prod(shape)


def _manifest(
    plan: EmbedderPlan, reading: EmbedderReading, checkpoint: Checkpoint, folder: Path
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
        checked="unchecked",
        files=_files(plan, folder),
        sources=checkpoint.sources(False),
        tools=tool_versions(),
    )


def _files(plan: EmbedderPlan, folder: Path) -> tuple[BundleFile, ...]:
    roles: dict[str, FileRole] = {a.path: a.role for a in plan.artifacts}
    roles[TOKENIZER_FILE] = "tokenizer"
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    names = [path.relative_to(folder).as_posix() for path in found]
    return tuple(describe_file(folder, name, roles.get(name, "report")) for name in names)
