"""The folder a bundle grows in: what it takes up, keeps, and leaves alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mllm_export.errors import BuildError, DiskFullError
from mllm_export.export.finished import FINISHED, once
from mllm_export.export.partial import has_leftover, partial_folder
from mllm_export.plan import ArtifactPlan

GONE = 1 << 30
"""No process has such a number."""

ARTIFACT = ArtifactPlan(role="tower", path="tower.onnx", format="onnx", scheme="f32", tensors=())


def write_artifact(folder: Path, text: str = "weights") -> None:
    def write() -> None:
        (folder / ARTIFACT.path).write_text(text)

    once(folder, ARTIFACT, lambda: "inputs", write)


def left(folder: Path, name: str) -> Path:
    """A killed build's folder: one artifact that is whole, and more."""
    made = folder / f".{name}.{GONE}.partial"
    (made / "tokenizer").mkdir(parents=True)
    (made / "tokenizer" / "tokenizer.model").write_text("half")
    write_artifact(made)
    (made / "decoder.gguf").write_text("half")
    return made


def test_of_a_killed_build_only_whole_artifacts_are_taken_up(tmp_path: Path) -> None:
    left(tmp_path, "bundle")
    assert has_leftover(tmp_path / "bundle")
    with partial_folder(tmp_path / "bundle", 0) as folder:
        assert sorted(path.name for path in folder.iterdir()) == [FINISHED, ARTIFACT.path]
        write_artifact(folder, "written again")
        assert (folder / ARTIFACT.path).read_text() == "weights"
        assert list(tmp_path.iterdir()) == [folder]
        folder.rename(tmp_path / "bundle")


def test_what_another_bundle_left_is_not_touched(tmp_path: Path) -> None:
    others = [left(tmp_path, "bundle.int4"), left(tmp_path, "a.bundle")]
    assert not has_leftover(tmp_path / "bundle")
    with partial_folder(tmp_path / "bundle", 0) as folder:
        assert not list(folder.iterdir())
        folder.rename(tmp_path / "bundle")
    for other in others:
        assert (other / ARTIFACT.path).read_text() == "weights"


def test_a_record_whose_file_is_gone_keeps_nothing(tmp_path: Path) -> None:
    (left(tmp_path, "bundle") / ARTIFACT.path).unlink()
    with partial_folder(tmp_path / "bundle", 0) as folder:
        write_artifact(folder, "written again")
        assert (folder / ARTIFACT.path).read_text() == "written again"
        folder.rename(tmp_path / "bundle")


def grow(out: Path, end: BaseException, *, finished: bool) -> None:
    """A build that ends so, in the middle of an artifact."""
    with partial_folder(out, 0) as folder:
        if finished:
            write_artifact(folder)
        (folder / "decoder.gguf").write_text("half")
        raise end


@pytest.mark.parametrize("end", [KeyboardInterrupt(), DiskFullError("no room")])
def test_an_interrupt_and_a_full_disk_leave_what_was_finished_alone(
    tmp_path: Path, end: BaseException
) -> None:
    with pytest.raises(type(end)):
        grow(tmp_path / "bundle", end, finished=True)
    (folder,) = tmp_path.iterdir()
    assert folder.name == f".bundle.{os.getpid()}.partial"
    assert sorted(path.name for path in folder.iterdir()) == [FINISHED, ARTIFACT.path]


@pytest.mark.parametrize("end", [KeyboardInterrupt(), DiskFullError("no room")])
def test_where_nothing_was_finished_nothing_is_left(tmp_path: Path, end: BaseException) -> None:
    with pytest.raises(type(end)):
        grow(tmp_path / "bundle", end, finished=False)
    assert not list(tmp_path.iterdir())


def test_any_other_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="a stage died"):
        grow(tmp_path / "bundle", BuildError("a stage died"), finished=True)
    assert not list(tmp_path.iterdir())


def test_too_little_room_for_the_rest_keeps_what_was_finished_and_says_where(
    tmp_path: Path,
) -> None:
    left(tmp_path, "bundle")
    with (
        pytest.raises(DiskFullError, match=r"this build needs .*wait in .*\.partial for the next"),
        partial_folder(tmp_path / "bundle", 1 << 60),
    ):
        raise AssertionError("there is no such room")
    (kept,) = tmp_path.iterdir()
    assert (kept / ARTIFACT.path).read_text() == "weights"
