"""The ladder of an encoder alone: pixels, prompt, tower (both), weights, task, controls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.embedder_golden import (
    FOLDER,
    GoldenEmbedderOracle,
    write_golden_embedder,
)
from mllm_export.device_tests.embedder_oracle import EmbedderOracle, LiveEmbedder
from mllm_export.device_tests.embedder_rungs import RUNGS, EmbedderContext
from mllm_export.device_tests.labelled import read_labelled
from mllm_export.device_tests.profile import Limits, load_profile
from mllm_export.device_tests.stored import Stored
from mllm_export.device_tests.tower_file import TOWER_FILES, GraphOpener
from mllm_export.embedder import EmbedderManifest
from mllm_export.errors import CheckError, EngineError, ImageError
from mllm_export.export.embedder_parts import EmbedderReading
from mllm_export.plan import Role
from mllm_export.progress import Progress, Step, silent
from mllm_export.report import ArtifactSize, Report, Rung


def check_embedder(
    folder: Path,
    manifest: EmbedderManifest,
    checkpoint: Checkpoint | None = None,
    reading: EmbedderReading | None = None,
    evaluation: Path | None = None,
    progress: Progress = silent,
    golden: bool = False,
) -> Report:
    """Hold a bundle against its original, or without one against its golden files.

    `golden` writes those. Raises: CheckError, BundleError when the check cannot be done.
    """
    oracle = _oracle(folder, manifest, checkpoint, reading)
    if evaluation is not None and not isinstance(oracle, LiveEmbedder):
        raise CheckError("an evaluation file needs the original too; give it with --against")
    context = _context(folder, manifest, oracle, evaluation)
    rungs = tuple(_timed(name, context, progress) for name in RUNGS)
    if golden and isinstance(oracle, LiveEmbedder):
        write_golden_embedder(folder / FOLDER, oracle)
    sizes = tuple(ArtifactSize(path=f.path, size_bytes=f.size_bytes) for f in manifest.files)
    tower_file = TOWER_FILES[manifest.vision_engine]
    notes = tower_file.notes(manifest.path(folder, "tower"))
    return Report(
        model=manifest.model.name,
        family=manifest.model.family,
        target=manifest.target,
        recipe=manifest.recipe,
        profile=manifest.profile,
        rungs=rungs,
        sizes=sizes,
        tools=manifest.tools,
        notes=(f"reference: {oracle.title}", *(reading.notes if reading else ()), *notes),
    )


def check_embedder_stage(
    folder: Path,
    manifest: EmbedderManifest,
    source: Path | None,
    evaluation: Path | None,
    golden: bool,
    progress: Progress,
) -> Report:
    """`check_embedder` in a process of its own."""
    from mllm_export.export.embedder_parts import embedder_for

    if source is None:
        return check_embedder(folder, manifest, evaluation=evaluation, progress=progress)
    checkpoint = Checkpoint(source)
    entry = embedder_for(checkpoint.config)
    if entry is None:
        raise CheckError(f"{source} is no encoder alone")
    reading = entry.read(checkpoint)
    if reading.spec != replace(manifest.model, name=reading.spec.name):
        raise CheckError(f"{source} is not what {folder} was built from: sizes differ")
    return check_embedder(folder, manifest, checkpoint, reading, evaluation, progress, golden)


def _oracle(
    folder: Path,
    manifest: EmbedderManifest,
    checkpoint: Checkpoint | None,
    reading: EmbedderReading | None,
) -> EmbedderOracle:
    if checkpoint is None or reading is None:
        return GoldenEmbedderOracle(folder, manifest)
    return LiveEmbedder(checkpoint, reading)


def _context(
    folder: Path, manifest: EmbedderManifest, oracle: EmbedderOracle, evaluation: Path | None
) -> EmbedderContext:
    from mllm_export.runtimes.embedder import EmbedderSession

    tower_file = TOWER_FILES[manifest.vision_engine]
    spec = manifest.model
    stored: dict[str, Stored] = {}
    more: dict[tuple[str, Role], GraphOpener] = {}
    roles: tuple[Role, ...] = ("tower",) if spec.text is None else ("tower", "text_tower")
    for role in roles:
        path = manifest.path(folder, role)
        stored |= tower_file.read(path)
        image = spec.encoder.image if role == "tower" else None
        further = tower_file.more_graphs(path, image)
        more |= {(name, role): opener for name, opener in further.items()}
    kind = tower_file.kind(stored)
    labelled = () if evaluation is None else read_labelled(evaluation)
    return EmbedderContext(
        session=EmbedderSession(folder, manifest, engine=tower_file.engine()),
        oracle=oracle,
        limits=Limits(load_profile(manifest.profile), kind, kind, bool(labelled)),
        stored=stored,
        more=more,
        labelled=labelled,
    )


def _timed(name: str, context: EmbedderContext, progress: Progress) -> Rung:
    step = Step(stage=f"check {name}", item=name, done=0, total=1, unit="rung")
    progress(step)
    start = perf_counter()
    try:
        rung = RUNGS[name](context)
    except (EngineError, ImageError, FloatingPointError) as failure:
        rung = Rung(name=name, status="failed", reason=str(failure))
    progress(replace(step, done=1))
    return replace(rung, seconds=round(perf_counter() - start, 3))
