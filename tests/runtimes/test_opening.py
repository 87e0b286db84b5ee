"""What `load` refuses, and what it says."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mllm_export import hashing, verified
from mllm_export.bundle import open_bundle
from mllm_export.errors import BundleError, EngineError, SpecError
from mllm_export.runtimes import load
from mllm_export.runtimes.engines import (
    DECODER_ENGINES,
    VISION_ENGINES,
    DecoderEngine,
    VisionEngine,
)
from mllm_export.runtimes.machine import architecture, cpu_features, usable_cores


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "bundle.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def rehash(folder: Path) -> None:
    """Make bundle.json agree with files that a test replaced."""
    from mllm_export.bundle import describe_file

    def update(data: dict[str, Any]) -> None:
        for file in data["files"]:
            now = describe_file(folder, file["path"], file["role"])
            file.update(size_bytes=now.size_bytes, sha256=now.sha256)

    edit(folder, update)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown schema": (lambda d: d.update(schema=99), "schema 99, this runtime reads 1"),
    "unknown key": (lambda d: d.update(surprise=1), "key 'surprise'"),
    "path out of the folder": (
        lambda d: d["files"][0].update(path="../tower.onnx"),
        "leads out of the bundle",
    ),
    "absolute path": (
        lambda d: d["files"][0].update(path="/etc/passwd"),
        "leads out of the bundle",
    ),
    "file that is not there": (
        lambda d: d["files"][0].update(path="gone.onnx"),
        "file 'gone.onnx' is missing",
    ),
    "unknown vision engine": (
        lambda d: d.update(vision_engine="onyx"),
        "unknown vision engine 'onyx'; did you mean onnx",
    ),
    "unknown decoder engine": (
        lambda d: d.update(decoder_engine="mlx"),
        r"unknown decoder engine 'mlx' \(known: llama_cpp\)",
    ),
    "engine name that is a path": (
        lambda d: d.update(vision_engine="../session"),
        "unknown vision engine",
    ),
    "private module as engine": (
        lambda d: d.update(decoder_engine="_library"),
        "unknown decoder engine '_library'",
    ),
    "later runtime": (
        lambda d: d.update(minimum_runtime=[0, 999, 0]),
        r"needs mllm-export 0\.999\.0 or later",
    ),
    "no tower": (lambda d: d["files"].pop(0), "no file of role 'tower'"),
    "no decoder": (lambda d: d["files"].pop(1), "no file of role 'decoder'"),
}


@pytest.mark.parametrize(("change", "message"), EDITS.values(), ids=EDITS.keys())
def test_load_refuses_a_manifest_it_cannot_run(
    bundle_copy: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(bundle_copy, change)
    with pytest.raises(BundleError, match=message) as caught:
        load(bundle_copy)
    assert "\n" not in str(caught.value)


def test_load_refuses_features_that_this_cpu_lacks(bundle_copy: Path) -> None:
    needs = {"cpu_features": ["asimd9"], "target": "raspberry-pi-9"}
    edit(bundle_copy, lambda d: d.update(needs, arch=architecture()))
    if cpu_features() is None:
        pytest.skip("this system does not list what its CPU has")
    with pytest.raises(BundleError, match=r"built for target raspberry-pi-9, .* asimd9; this CPU"):
        load(bundle_copy)


def test_a_bundle_for_another_architecture_may_be_looked_at(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda d: d.update(cpu_features=["asimd9"], arch="another"))
    with load(bundle_copy) as session:
        assert session.manifest.arch == "another"


def test_load_refuses_two_encoders_that_nothing_joins(bundle_copy: Path) -> None:
    def double(data: dict[str, Any]) -> None:
        data["model"]["encoders"] *= 2
        data["model"]["projector"]["in_width"] *= 2

    edit(bundle_copy, double)
    with pytest.raises(SpecError, match="2 encoders, fusion None: several need one"):
        load(bundle_copy)


def test_load_refuses_a_changed_file_unless_told_not_to_look(bundle_copy: Path) -> None:
    path = bundle_copy / "decoder.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        load(bundle_copy)
    load(bundle_copy, threads=1, verify=False).close()


@pytest.mark.parametrize("file", ["tower.onnx", "decoder.gguf", "prefix.state"])
def test_no_engine_reads_a_file_before_its_hash_was_compared(
    bundle_copy: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed file is what is said, not what an engine makes of it; what was opened is closed."""
    add(bundle_copy, "prefix.state", "prefix")
    load(bundle_copy, threads=1).close()
    path = bundle_copy / file
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    opened, closed = list[str](), list[str]()
    for engine, kind in (
        (VISION_ENGINES["onnx"], "tower"),
        (DECODER_ENGINES["llama_cpp"], "decoder"),
    ):
        watch(monkeypatch, engine, kind, opened, closed)
    with pytest.raises(BundleError, match=rf"file '{file}' was changed .*SHA-256 differs"):
        load(bundle_copy, threads=1)
    changed = file.split(".")[0]
    assert sorted(opened) == sorted(closed) == sorted({"tower", "decoder"} - {changed})


def add(folder: Path, name: str, role: str) -> None:
    """A file of that role, in the folder and in bundle.json."""
    (folder / name).write_text("as it was", encoding="utf-8")
    row = {"path": name, "role": role, "size_bytes": 9, "sha256": ""}
    edit(folder, lambda data: data["files"].append(row))
    rehash(folder)


def test_a_file_that_load_does_not_open_is_left_to_check(bundle_copy: Path) -> None:
    add(bundle_copy, "mmproj.gguf", "mmproj")
    (bundle_copy / "mmproj.gguf").write_text("as it wa?", encoding="utf-8")
    load(bundle_copy, threads=1).close()
    with pytest.raises(BundleError, match=r"file 'mmproj\.gguf' was changed"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("file", ["tower.onnx", "decoder.gguf", "prefix.state"])
def test_a_file_changed_behind_its_size_and_time_is_refused_though_it_was_remembered(
    bundle_copy: Path, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLLM_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "_SETTLED_S", -1)
    add(bundle_copy, "prefix.state", "prefix")
    load(bundle_copy, threads=1).close()
    path, hashed = bundle_copy / file, list[str]()

    def has_sha256(path: Path, sha256: str) -> bool:
        hashed.append(path.name)
        return hashing.has_sha256(path, sha256)

    monkeypatch.setattr(verified, "has_sha256", has_sha256)
    load(bundle_copy, threads=1).close()
    if (tmp_path / "cache").exists():  # else nothing is remembered on this file system
        assert not hashed
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    time.sleep(0.05)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(BundleError, match=rf"file '{file}' was changed .*SHA-256 differs"):
        load(bundle_copy, threads=1)


def watch(
    monkeypatch: pytest.MonkeyPatch,
    engine: VisionEngine | DecoderEngine,
    kind: str,
    opened: list[str],
    closed: list[str],
) -> None:
    """Write down that the engine opened something, and that it was closed."""
    plain = engine.open

    def open_it(*given: Any) -> Any:
        found = plain(*given)
        opened.append(kind)
        close = found.close
        monkeypatch.setattr(found, "close", lambda: (closed.append(kind), close()))
        return found

    monkeypatch.setattr(engine, "open", open_it)


def test_load_refuses_a_truncated_file_without_hashing(bundle_copy: Path) -> None:
    path = bundle_copy / "decoder.gguf"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"decoder\.gguf.* bytes, bundle\.json says"):
        load(bundle_copy, verify=False)


def test_load_refuses_a_link_that_leads_out(bundle_copy: Path, tmp_path: Path) -> None:
    path = bundle_copy / "tower.onnx"
    path.rename(tmp_path / "elsewhere.onnx")
    path.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        load(bundle_copy)


def test_load_refuses_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is no bundle: bundle\.json is missing"):
        load(tmp_path)


@pytest.mark.parametrize("file", ["tower.onnx", "decoder.gguf"])
def test_load_refuses_a_file_that_the_engine_cannot_read(bundle_copy: Path, file: str) -> None:
    (bundle_copy / file).write_bytes(b"not a model")
    rehash(bundle_copy)
    with pytest.raises(EngineError, match=rf"{file}.* refuses") as caught:
        load(bundle_copy)
    assert "\n" not in str(caught.value)


def test_load_refuses_a_decoder_of_another_model(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda data: data["model"]["decoder"].update(vocab=801))
    with pytest.raises(EngineError, match=r"vocabulary 800 and width 64, the spec says 801 and 64"):
        load(bundle_copy)


@pytest.mark.parametrize("context", [0, -1, 1025])
def test_load_refuses_a_context_the_model_was_not_made_for(bundle: Path, context: int) -> None:
    with pytest.raises(EngineError, match=f"context of {context} tokens .* takes 1 to 1024"):
        load(bundle, context_tokens=context)


def test_load_refuses_no_threads(bundle: Path) -> None:
    with pytest.raises(EngineError, match="threads is 0"):
        load(bundle, threads=0)


def test_load_takes_the_context_asked_for(bundle: Path) -> None:
    with load(bundle, threads=1, context_tokens=100) as session:
        assert session.context_tokens == 100


def test_the_default_is_every_usable_core() -> None:
    assert usable_cores() >= 1
