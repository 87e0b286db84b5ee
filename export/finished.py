"""What a killed build had finished; the next one with the same inputs takes it up."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

from mllm_export.embedder import EmbedderPlan
from mllm_export.errors import BuildError
from mllm_export.export.artifact import Work
from mllm_export.hashing import file_sha256
from mllm_export.plan import ArtifactPlan, Plan
from mllm_export.records import from_json, record, to_json
from mllm_export.source_file import SourceFile

FINISHED = ".finished"
"""Folder of records inside a bundle that grows; it goes before the manifest comes."""

_CODE = (".py", ".toml")


@record
class Finished:
    """One artifact that stands whole."""

    key: str
    """Digest of all its bytes depend on; see `artifact_key`."""
    files: tuple[SourceFile, ...]
    """All that was written for it, relative to the bundle's folder."""
    float_tower: str | None
    """The graph it was made from, for the checks."""


def artifact_key(
    plan: Plan | EmbedderPlan,
    artifact: ArtifactPlan,
    sources: tuple[SourceFile, ...],
    tools: tuple[tuple[str, str], ...],
    given: Iterable[str] = (),
) -> str:
    """SHA-256 over the plan, the sources' hashes, the tools' versions and this package's code.

    `given` is what else the bytes depend on; see `given_to`.
    """
    digest = hashlib.sha256()
    digest.update(to_json(replace(plan, artifacts=(artifact,))).encode())
    for source in sources:
        digest.update(to_json(source).encode())
    digest.update(repr(tools).encode())
    for one in given:
        digest.update(one.encode())
    digest.update(_code_sha256().encode())
    return digest.hexdigest()


def given_to(work: Work) -> Iterator[str]:
    """Files and measurements that an answering model's artifacts are made with."""
    for field in fields(Work):
        value = getattr(work, field.name)
        if isinstance(value, Path) and value.is_file():
            yield f"{field.name} {file_sha256(value)}"
    given = work.calibrated
    matrix = file_sha256(given.imatrix) if given.imatrix is not None else ""
    yield f"calibrated {given.key} {matrix}"


@cache
def _code_sha256() -> str:
    """A changed exporter writes other bytes without a new version number."""
    import mllm_export.export
    import mllm_export.quantize

    digest = hashlib.sha256()
    for package in (mllm_export.export, mllm_export.quantize):
        for folder in package.__path__:
            for path in sorted(p for p in Path(folder).rglob("*") if p.suffix in _CODE):
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def once(
    folder: Path, artifact: ArtifactPlan, key: Callable[[], str], write: Callable[[], Path | None]
) -> Finished:
    """The artifact as an earlier run finished it, or as `write` writes it now.

    `key` waits for the hashes of the sources, so it is asked first only where there is a record.
    """
    found = _read(_record_path(folder, artifact))
    if found is not None and found.key == key() and _stands(folder, found):
        return found
    _remove(folder, found)
    before = _files(folder)
    float_tower = write()
    new = sorted(_files(folder) - before)
    finished = Finished(
        key=key(),
        files=tuple(_describe(folder, name) for name in new),
        float_tower=float_tower.relative_to(folder).as_posix() if float_tower else None,
    )
    _write(_record_path(folder, artifact), finished)
    return finished


def keep_finished(folder: Path) -> int:
    """Clear an abandoned folder of all that no record vouches for; returns the bytes kept."""
    read = map(_read, folder.glob(f"{FINISHED}/*.json"))
    records = [found for found in read if found is not None and _are_there(folder, found)]
    kept = {file.path: file.size_bytes for found in records for file in found.files}
    for name in _files(folder) - set(kept):
        (folder / name).unlink()
    # The innermost first; the next run makes its own, and would not expect one.
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    return sum(kept.values())


def forget_finished(folder: Path) -> None:
    """The records have no place in a bundle."""
    shutil.rmtree(folder / FINISHED, ignore_errors=True)


def _files(folder: Path) -> set[str]:
    """Every file but the records, relative to the folder."""
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name for name in names if not name.startswith(f"{FINISHED}/")}


def _record_path(folder: Path, artifact: ArtifactPlan) -> Path:
    return folder / FINISHED / f"{artifact.path}.json"


def _read(path: Path) -> Finished | None:
    """None where there is none, or only the beginning of one."""
    try:
        return from_json(Finished, path.read_bytes(), path, BuildError)
    except (FileNotFoundError, BuildError):
        return None


def _write(path: Path, finished: Finished) -> None:
    path.parent.mkdir(exist_ok=True)
    growing = path.with_suffix(".growing")
    growing.write_text(to_json(finished), encoding="utf-8")
    growing.replace(path)


def _stands(folder: Path, found: Finished) -> bool:
    return _are_there(folder, found) and all(
        _describe(folder, file.path) == file for file in found.files
    )


def _are_there(folder: Path, found: Finished) -> bool:
    return all((folder / file.path).is_file() for file in found.files)


def _remove(folder: Path, found: Finished | None) -> None:
    for file in found.files if found else ():
        (folder / file.path).unlink(missing_ok=True)


def _describe(folder: Path, name: str) -> SourceFile:
    path = folder / name
    return SourceFile(path=name, size_bytes=path.stat().st_size, sha256=file_sha256(path))
