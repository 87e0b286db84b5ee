"""From a plan to a finished bundle, or to nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import mllm_export
from mllm_export.bundle import Bundle, BundleFile, FileRole, Manifest, describe_file
from mllm_export.checkpoint import Checkpoint
from mllm_export.errors import MllmExportError
from mllm_export.export.artifact import ARTIFACTS, FLOAT_TOWER, Calibrated, Work
from mllm_export.export.decoder_calibrated import FOLDS, IMATRIX
from mllm_export.export.family import Reading
from mllm_export.export.finished import FINISHED, Finished, artifact_key, given_to, once
from mllm_export.export.partial import partial_folder, take_name
from mllm_export.export.parts import TOKENIZERS
from mllm_export.export.planned_storage import remembered
from mllm_export.export.target import Target
from mllm_export.export.tower_plan import float_bytes
from mllm_export.plan import ArtifactPlan, Plan
from mllm_export.prefix import PREFIX
from mllm_export.progress import Progress, silent
from mllm_export.records import to_json
from mllm_export.source_file import SourceFile

TOOLS = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "coremltools",
    "gguf",
    "llama-cpp-python",
)
"""What the bytes of an artifact may depend on; written into the manifest."""

PIXELS = f"{FLOAT_TOWER}.pixels.npy"
"""Calibration pictures while the bundle grows."""

Calibrate = Callable[[Path], None]
"""Writes the calibration pictures, as the model's preprocessing gives them, to a .npy file."""

Finish = Callable[[Bundle, Path | None], Literal["passed", "unchecked"]]
"""Checks a bundle that stands but has no manifest yet (second: the float tower), adds files to
its folder and says how the manifest shall mark it; raises to have nothing left behind."""


def build(
    plan: Plan,
    reading: Reading,
    checkpoint: Checkpoint,
    target: Target,
    out: Path,
    finish: Finish,
    progress: Progress = silent,
    calibrate: Calibrate | None = None,
    calibrated: Calibrated | None = None,
) -> Bundle:
    """Write the bundle `out`; until everything stands and is checked there is no such folder.

    `calibrate` serves plans that need pictures, `calibrated` those that weigh the decoder.

    Raises: BuildError for a folder that exists, a full disk, or a stage that died; whatever
    `finish` raises.
    """
    with partial_folder(out, needed_bytes(plan)) as folder, ThreadPoolExecutor(1) as aside:
        # Gigabytes are hashed while the stages, which are processes, read them anyway.
        sources = aside.submit(checkpoint.sources, reading.uses_tower_folder, reading.folders)
        work = Work(
            plan=plan,
            reading=reading,
            source=(checkpoint.path, checkpoint.asked),
            folder=folder,
            pixels=folder / PIXELS if plan.needs_pictures else None,
            calibrated=calibrated or Calibrated(),
        )
        if work.pixels is not None and calibrate is not None:
            calibrate(work.pixels)
        finished = _write_artifacts(work, sources, progress)
        _copy_tokenizer(reading, checkpoint, folder)
        known = {file.path: file for one in finished for file in one.files}
        draft = _manifest(plan, sources.result(), target, _files(plan, folder, known))
        verdict = finish(Bundle(folder, draft), _float_tower(folder, finished))
        manifest = replace(draft, checked=verdict, files=_files(plan, folder, known))
        served = tuple(folder.glob(f"{FLOAT_TOWER}*"))
        take_name(folder, out, to_json(manifest), served)
    return Bundle(out, manifest)


def needed_bytes(plan: Plan) -> int:
    """Room on the disk: the artifacts, and the float tower while it is quantized."""
    tower = plan.artifact("tower")
    if tower is None or all(row.scheme == "f32" for row in tower.tensors):
        return plan.size_bytes
    return plan.size_bytes + float_bytes(tower.tensors)


def _write_artifacts(
    work: Work, sources: Future[tuple[SourceFile, ...]], progress: Progress
) -> list[Finished]:
    """Every planned artifact, as a killed run finished it or written now."""
    tools = tool_versions()

    def key(artifact: ArtifactPlan) -> str:
        return artifact_key(work.plan, artifact, sources.result(), tools, given_to(work))

    finished: list[Finished] = []
    for artifact in work.plan.artifacts:
        write = partial(ARTIFACTS[artifact.format].write, work, artifact, progress)
        finished.append(once(work.folder, artifact, partial(key, artifact), write))
    return finished


def _float_tower(folder: Path, finished: list[Finished]) -> Path | None:
    """The tower's float graph, for the checks."""
    return next((folder / one.float_tower for one in finished if one.float_tower), None)


def _copy_tokenizer(reading: Reading, checkpoint: Checkpoint, folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    for name in TOKENIZERS[reading.spec.tokenizer.kind].files:
        source = reading.tokenizer_path(checkpoint) / name
        if source.is_file():
            shutil.copyfile(source, folder / "tokenizer" / name)


def _manifest(
    plan: Plan,
    sources: tuple[SourceFile, ...],
    target: Target,
    files: tuple[BundleFile, ...],
) -> Manifest:
    return Manifest(
        model=plan.spec,
        target=target.name,
        recipe=plan.recipe,
        profile=plan.profile,
        checked="unchecked",
        context_tokens=plan.context_tokens,
        minimum_runtime=(0, 1, 0),
        vision_engine=target.vision_engine,
        decoder_engine=target.decoder_engine,
        arch=target.arch,
        cpu_features=target.cpu_features,
        kv_type=plan.kv_type,
        decoder_importance=plan.decoder_importance,
        planned=remembered(plan),
        files=files,
        sources=sources,
        tools=tool_versions(),
    )


def _files(plan: Plan, folder: Path, known: dict[str, SourceFile]) -> tuple[BundleFile, ...]:
    """Every file of the bundle; what is `known` is not hashed again."""
    artifacts: dict[str, FileRole] = {a.path: a.role for a in plan.artifacts}
    folders: dict[str, FileRole] = {"tokenizer": "tokenizer", "golden": "golden"}
    found: list[BundleFile] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith((FLOAT_TOWER, f"{FINISHED}/")):
            continue
        top = name.split("/", 1)[0]
        role = artifacts.get(name) or artifacts.get(top) or folders.get(top) or _side_role(name)
        found.append(
            _described(known[name], role) if name in known else describe_file(folder, name, role)
        )
    return tuple(found)


def _described(file: SourceFile, role: FileRole) -> BundleFile:
    return BundleFile(path=file.path, role=role, size_bytes=file.size_bytes, sha256=file.sha256)


def _side_role(name: str) -> FileRole:
    if name in (FOLDS, IMATRIX):
        return "calibration"
    if name == PREFIX:
        return "prefix"
    return "report" if name.startswith("report.") else "text"


def tool_versions() -> tuple[tuple[str, str], ...]:
    """Name and version of everything an artifact's bytes may depend on."""
    try:
        tools = tuple((tool, version(tool)) for tool in TOOLS)
    except PackageNotFoundError as failure:
        raise MllmExportError(
            f"{failure.name} is not installed; install with: pip install 'mllm-export[export]'"
        ) from None
    return (("mllm-export", mllm_export.__version__), *tools)
