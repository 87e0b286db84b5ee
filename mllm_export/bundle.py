"""A bundle: one folder, described by bundle.json, in which every file has its hash."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal

from mllm_export.errors import BundleError
from mllm_export.hashing import file_sha256, has_sha256
from mllm_export.kv_cache import KvType
from mllm_export.plan import Importance
from mllm_export.planned import PlannedScheme
from mllm_export.records import from_plain, record, to_json
from mllm_export.source_file import SourceFile
from mllm_export.spec import ModelSpec

SCHEMA = 1
MANIFEST = "bundle.json"
EMBEDDER = "embedder"
"""What `job` says in the bundle.json of an encoder alone, which has a schema of its own."""

_GROWING = re.compile(r"\..+\.\d+\.partial")

FileRole = Literal[
    "tower",
    "text_tower",
    "decoder",
    "mmproj",
    "prefix",
    "tokenizer",
    "golden",
    "calibration",
    "report",
    "text",
]


_ARTIFACTS = ("tower", "decoder", "mmproj")
"""Roles of what stands at the bundle's top: a file, or one folder."""


@record
class BundleFile:
    """A file of the bundle; `path` is relative, with forward slashes."""

    path: str
    role: FileRole
    size_bytes: int
    sha256: str


@record
class Manifest:
    """bundle.json: all a loader needs to know, and where everything came from."""

    schema: int = SCHEMA
    model: ModelSpec
    target: str
    recipe: str
    profile: str
    checked: Literal["passed", "unchecked"]
    context_tokens: int
    minimum_runtime: tuple[int, int, int]
    vision_engine: str
    """A file in runtimes/vision."""
    decoder_engine: str
    """A file in runtimes/decoder."""
    arch: str = ""
    """Architecture of the target's CPU; empty in bundles that were written before it was kept."""
    cpu_features: tuple[str, ...] = ()
    """What the target's CPU has, as the kernel names it."""
    kv_type: KvType = "f16"
    """How the runtime stores keys and values unless it is told otherwise."""
    decoder_importance: Importance = "none"
    """What weighed the errors of the decoder's columns when it was stored."""
    planned: tuple[PlannedScheme, ...] = ()
    """How tower and decoder were to be stored; empty in bundles that were written before it was
    kept."""
    files: tuple[BundleFile, ...]
    sources: tuple[SourceFile, ...]
    tools: tuple[tuple[str, str], ...]


class Bundle:
    """A folder whose manifest was read; see `open_bundle`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Use `open_bundle`, which verifies."""
        self.folder = folder
        self.manifest = manifest

    def path(self, role: FileRole) -> Path:
        """The one file of that role; an artifact of several files is a folder.

        Raises: BundleError when there is none.
        """
        found = self.find(role)
        if found is None:
            raise BundleError(f"{self.folder} has no file of role '{role}'")
        return found

    def find(self, role: FileRole) -> Path | None:
        """The first file of that role, or the folder of an artifact of several; or None."""
        first = next((f.path for f in self.manifest.files if f.role == role), None)
        if first is None:
            return None
        whole = role in _ARTIFACTS
        return self.folder / (PurePosixPath(first).parts[0] if whole else first)


def open_bundle(folder: Path, verify: bool = True) -> Bundle:
    """Read and verify a bundle.

    Raises: BundleError for no manifest, another schema or job, a file that is missing, changed,
    or leads out of the folder.
    """
    manifest = read_manifest(folder)
    for file in manifest.files:
        check_file(folder, file, verify)
    return Bundle(folder, manifest)


def growing_name(name: str, process: int | str) -> str:
    """What the folder of a bundle is called until it is whole."""
    return f".{name}.{process}.partial"


def refuse_growing(folder: Path) -> None:
    """Raises: BundleError for a folder whose build did not end."""
    if _GROWING.fullmatch(folder.resolve().name):
        raise BundleError(
            f"{folder} is no bundle: its build did not end; run it again, it takes up what is there"
        )


def read_manifest(folder: Path) -> Manifest:
    """bundle.json alone, without a look at the files it names."""
    refuse_growing(folder)
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{folder} is no bundle: {MANIFEST} is missing") from None
    except (ValueError, OSError) as failure:
        raise BundleError(f"{path}: not valid JSON ({failure})") from failure
    if isinstance(data, dict) and data.get("job") == EMBEDDER:
        raise BundleError(
            f"{folder} is an encoder alone, which answers no questions; open it with 'run', "
            "'check' or mllm_export.runtimes.embedder.open_embedder_session"
        )
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"{path}: schema {schema!r}, this runtime reads {SCHEMA}; "
            "install the version of mllm-export that wrote the bundle"
        )
    return from_plain(Manifest, data, str(path), BundleError)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write bundle.json, the last file of a bundle."""
    (folder / MANIFEST).write_text(to_json(manifest), encoding="utf-8")


def describe_file(folder: Path, path: str, role: FileRole) -> BundleFile:
    """Size and hash of a file that stands in the bundle's folder."""
    whole = folder / path
    return BundleFile(
        path=path, role=role, size_bytes=whole.stat().st_size, sha256=file_sha256(whole)
    )


def check_file(
    folder: Path, file: BundleFile, verify: bool, holds: Callable[[Path, str], bool] = has_sha256
) -> None:
    """`holds` says whether a file still has its hash.

    Raises: BundleError for a file that is missing, changed, or leads out of the folder.
    """
    pure = PurePosixPath(file.path)
    whole = folder / pure
    inside = not pure.is_absolute() and ".." not in pure.parts and "\\" not in file.path
    if not inside or not whole.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{folder / MANIFEST}: file '{file.path}' leads out of the bundle")
    if not whole.is_file():
        raise BundleError(f"{folder}: file '{file.path}' is missing; copy the whole bundle again")
    size = whole.stat().st_size
    if size != file.size_bytes:
        raise BundleError(
            f"{folder}: file '{file.path}' has {size} bytes, bundle.json says {file.size_bytes}; "
            "copy the bundle again"
        )
    if verify and not holds(whole, file.sha256):
        raise BundleError(
            f"{folder}: file '{file.path}' was changed since the bundle was written "
            "(its SHA-256 differs); copy or build the bundle again"
        )
