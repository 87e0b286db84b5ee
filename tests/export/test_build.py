"""A bundle appears whole or not at all, and the same inputs give the same bytes."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mllm_export.bundle import open_bundle
from mllm_export.errors import BundleError
from mllm_export.export.families.mobilevlm import FAMILY
from mllm_export.export.random_checkpoint import write_random_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "model", FAMILY.tiny())


def command(model: Path, out: Path, recipe: str = "f16") -> list[str]:
    return [
        *(sys.executable, "-m", "mllm_export", "build", str(model), "--no-check"),
        *("--target", "linux-x86_64", "--recipe", recipe, "-o", str(out)),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_builds_of_one_checkpoint_are_equal_to_the_byte(model: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        subprocess.run(command(model, tmp_path / name, "int4"), check=True, capture_output=True)
    first, second = contents(tmp_path / "first"), contents(tmp_path / "second")
    assert first == second
    assert {"bundle.json", "tower.onnx", "decoder.gguf"} <= set(first)
    for name, data in first.items():
        assert str(tmp_path).encode() not in data, name
        assert str(model.parent).encode() not in data, name


def test_a_killed_build_leaves_nothing_a_loader_takes_and_the_next_one_clears_it(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    process = subprocess.Popen(command(model, out), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".bundle.*.partial/*")):
        assert time.monotonic() < deadline, "the build wrote nothing"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    (left,) = tmp_path.iterdir()
    with pytest.raises(BundleError, match="its build did not end"):
        open_bundle(left)
    subprocess.run(command(model, out), check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert open_bundle(out).manifest.checked == "unchecked"


def killed_after(seconds: float, asked: list[str]) -> bool:
    """Whether the process was alive when it was killed; its bundle may have been whole by then."""
    process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def finished_artifacts(folder: Path) -> dict[str, int]:
    """Artifacts a killed run left on record, with the time each was written."""
    records = sorted(folder.glob(".bundle.*.partial/.finished/*.json"))
    return {path.stem: (path.parents[1] / path.stem).stat().st_mtime_ns for path in records}


def kill_when_finished(artifact: str, asked: list[str], folder: Path) -> None:
    process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while artifact not in finished_artifacts(folder):
        assert time.monotonic() < deadline, f"{artifact} was not finished"
        assert process.poll() is None, "the build ended first"
        time.sleep(0.005)
    process.kill()
    process.wait()


def test_what_a_killed_build_had_finished_is_taken_up_and_the_bytes_are_the_same(
    model: Path, tmp_path: Path
) -> None:
    asked = command(model, tmp_path / "bundle", "int4")
    kill_when_finished("tower.onnx", asked, tmp_path)
    before = finished_artifacts(tmp_path)
    (left,) = tmp_path.iterdir()
    with pytest.raises(BundleError, match="its build did not end"):
        open_bundle(left)
    subprocess.run(asked, check=True, capture_output=True)
    assert (tmp_path / "bundle" / "tower.onnx").stat().st_mtime_ns == before["tower.onnx"]
    subprocess.run(
        command(model, tmp_path / "undisturbed", "int4"), check=True, capture_output=True
    )
    assert contents(tmp_path / "bundle") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("change", ["weights", "artifact"])
def test_what_other_inputs_gave_is_not_taken_up(change: str, model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model.parent, tmp_path / "models") / model.name
    out = tmp_path / "out" / "bundle"
    kill_when_finished("tower.onnx", command(copy, out), out.parent)
    if change == "weights":
        weights = copy / "pytorch_model.bin"
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    if change == "artifact":
        (tower,) = out.parent.glob(".bundle.*.partial/tower.onnx")
        tower.write_bytes(tower.read_bytes()[:-1] + b"\0")
    subprocess.run(command(copy, out), check=True, capture_output=True)
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(command(copy, undisturbed), check=True, capture_output=True)
    assert contents(out) == contents(undisturbed)


@pytest.mark.slow
def test_killed_at_50_random_moments_a_build_ends_with_the_bytes_of_an_undisturbed_one(
    model: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    subprocess.run(command(model, tmp_path / "undisturbed"), check=True, capture_output=True)
    whole = time.monotonic() - started
    expected = contents(tmp_path / "undisturbed")
    moments, kills, out = random.Random(0), 0, tmp_path / "out" / "bundle"
    while kills < 50:
        killed = killed_after(moments.uniform(0.1, 1.0) * whole, command(model, out))
        kills += killed
        assert killed or out.exists(), "a build that was let alone must leave a bundle"
        for left in out.parent.glob(".bundle.*.partial"):
            with pytest.raises(BundleError):
                open_bundle(left)
        if out.exists():
            assert contents(out) == expected, "what appears under the bundle's name must be whole"
            shutil.rmtree(out)
    subprocess.run(command(model, out), check=True, capture_output=True)
    assert contents(out) == expected
