"""A build asks for the room it takes on the disk, before it writes anything."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mllm_export.checkpoint import Checkpoint
from mllm_export.commands.opening import reference_folder
from mllm_export.errors import BuildError
from mllm_export.export.build import needed_bytes
from mllm_export.export.family import Reading, read_spec
from mllm_export.export.finished import FINISHED, Finished
from mllm_export.export.make_plan import make_plan
from mllm_export.export.partial import partial_folder
from mllm_export.export.target import load_target
from mllm_export.plan import Plan
from mllm_export.quantize.recipe import load_recipe
from mllm_export.records import to_json
from mllm_export.source_file import SourceFile

MIB = 1 << 20


@pytest.fixture(scope="module")
def reading() -> Reading:
    return read_spec(Checkpoint(reference_folder()))


def planned(reading: Reading, scheme: str) -> Plan:
    recipe = replace(load_recipe("int4"), tower_scheme=scheme)
    return make_plan(reading, load_target("linux-x86_64"), recipe)


def tower_bytes(plan: Plan) -> int:
    tower = plan.artifact("tower")
    assert tower is not None
    return tower.size_bytes


@pytest.mark.parametrize("scheme", ["f16", "w8a8", "w4g32", "w4g128-asym"])
def test_a_tower_made_from_a_float_graph_needs_room_for_both(reading: Reading, scheme: str) -> None:
    plan = planned(reading, scheme)
    float_graph = tower_bytes(planned(reading, "f32"))
    assert tower_bytes(plan) < float_graph
    assert needed_bytes(plan) == plan.size_bytes + float_graph


def test_a_float_tower_is_its_own_float_graph(reading: Reading) -> None:
    plan = planned(reading, "f32")
    assert needed_bytes(plan) == plan.size_bytes


def with_free(monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> list[Path]:
    """A disk with so much room; returns the folders that are asked about."""
    asked: list[Path] = []

    def disk_usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=size_bytes)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    return asked


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = with_free(monkeypatch, 5 * MIB)
    said = f"{tmp_path} has 5 MiB free, this build needs 7 MiB; make room or name another folder"
    with pytest.raises(BuildError, match=said), partial_folder(tmp_path / "bundle", 7 * MIB):
        pytest.fail("nothing may be written")
    assert asked == [tmp_path], "the disk that the bundle goes to"
    assert not list(tmp_path.iterdir())


def test_just_enough_room_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 7 * MIB)
    with partial_folder(tmp_path / "bundle", 7 * MIB) as folder:
        assert folder.is_dir()


def interrupted(folder: Path, finished_bytes: int) -> None:
    """A build that is stopped when one artifact of that size stands."""
    (folder / "decoder.gguf").write_bytes(bytes(finished_bytes))
    file = SourceFile(path="decoder.gguf", size_bytes=finished_bytes, sha256="")
    (folder / FINISHED).mkdir()
    stands = Finished(key="", files=(file,), float_tower=None)
    (folder / FINISHED / "decoder.gguf.json").write_text(to_json(stands))
    raise KeyboardInterrupt


def test_what_an_interrupted_build_finished_is_not_needed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), partial_folder(tmp_path / "bundle", 0) as folder:
        interrupted(folder, finished_bytes=3 * MIB)
    with_free(monkeypatch, 4 * MIB)
    with partial_folder(tmp_path / "bundle", 7 * MIB) as folder:
        assert (folder / "decoder.gguf").stat().st_size == 3 * MIB
