"""From a plan to a finished bundle, or to nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import mllm_export
from mllm_export.bundle import (
    Bundle,
    BundleFile,
    FileRole,
    Manifest,
    describe_file,
    write_manifest,
)
from mllm_export.checkpoint import Checkpoint
from mllm_export.errors import BuildError, MllmExportError
from mllm_export.export.artifact import ARTIFACTS, FLOAT_TOWER, Work
from mllm_export.export.child import os_failure
from mllm_export.export.family import Reading
from mllm_export.export.parts import TOKENIZERS
from mllm_export.export.target import Target
from mllm_export.plan import Plan
from mllm_export.progress import Progress, silent

TOOLS = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "coremltools",
    "optimum-onnx",
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
) -> Bundle:
    """Write the bundle `out`; until everything stands and is checked there is no such folder.

    Raises: BuildError for a folder that exists, a full disk, or a stage that died; whatever
    `finish` raises.
    """
    with partial_folder(out, needed_bytes(plan)) as folder:
        work = Work(
            plan=plan,
            reading=reading,
            source=(checkpoint.path, checkpoint.asked),
            folder=folder,
            pixels=folder / PIXELS if plan.needs_pictures else None,
        )
        if work.pixels is not None and calibrate is not None:
            calibrate(work.pixels)
        float_tower = _write_artifacts(work, progress)
        _copy_tokenizer(reading, checkpoint, folder)
        draft = _manifest(plan, reading, checkpoint, target, folder)
        verdict = finish(Bundle(folder, draft), float_tower)
        for left in folder.glob(f"{FLOAT_TOWER}*"):
            left.unlink()
        manifest = replace(draft, checked=verdict, files=_files(plan, folder))
        write_manifest(folder, manifest)
        sync(folder)
        folder.rename(out)
    return Bundle(out, manifest)


@contextmanager
def partial_folder(out: Path, needed: int) -> Iterator[Path]:
    """A hidden folder beside `out`, gone when the block fails."""
    if out.exists():
        raise BuildError(f"{out} exists; name another folder with -o, or remove it first")
    folder = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        _require_room(out.parent, needed)
        folder.mkdir()
        yield folder
    except OSError as failure:
        raise BuildError(os_failure(failure)) from failure
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(out: Path) -> None:
    """Clear what a killed run left; it has no bundle.json, so no loader ever took it."""
    for left in out.parent.glob(f".{out.name}.*.partial"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def needed_bytes(plan: Plan) -> int:
    """Room on the disk: the artifacts, and the float tower while it is quantized."""
    tower = plan.artifact("tower")
    quantized = any(row.scheme != "f32" for row in tower.tensors) if tower else False
    return plan.size_bytes + (4 * tower.size_bytes if tower and quantized else 0)


def _require_room(parent: Path, needed: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise BuildError(
            f"{parent} has {free >> 20} MiB free, this build needs {needed >> 20} MiB; "
            "make room or name another folder with -o"
        )


def _write_artifacts(work: Work, progress: Progress) -> Path | None:
    """Every planned artifact; returns the tower's float graph, for the checks."""
    floats = [ARTIFACTS[a.format].write(work, a, progress) for a in work.plan.artifacts]
    return next((path for path in floats if path is not None), None)


def _copy_tokenizer(reading: Reading, checkpoint: Checkpoint, folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    for name in TOKENIZERS[reading.spec.tokenizer.kind].files:
        source = checkpoint.path / name
        if source.is_file():
            shutil.copyfile(source, folder / "tokenizer" / name)


def _manifest(
    plan: Plan,
    reading: Reading,
    checkpoint: Checkpoint,
    target: Target,
    folder: Path,
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
        cpu_features=target.cpu_features,
        files=_files(plan, folder),
        sources=checkpoint.sources(reading.uses_tower_folder),
        tools=tool_versions(),
    )


def _files(plan: Plan, folder: Path) -> tuple[BundleFile, ...]:
    artifacts: dict[str, FileRole] = {a.path: a.role for a in plan.artifacts}
    folders: dict[str, FileRole] = {"tokenizer": "tokenizer", "golden": "golden"}
    found: list[BundleFile] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(FLOAT_TOWER):
            continue
        top = name.split("/", 1)[0]
        role = artifacts.get(name) or artifacts.get(top) or folders.get(top) or _side_role(name)
        found.append(describe_file(folder, name, role))
    return tuple(found)


def _side_role(name: str) -> FileRole:
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


def sync(folder: Path) -> None:
    """Have every file of the folder on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
