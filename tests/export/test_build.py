"""A bundle appears whole or not at all, and the same inputs give the same bytes."""

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
    with pytest.raises(BundleError, match=r"bundle\.json is missing"):
        open_bundle(left)
    subprocess.run(command(model, out), check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert open_bundle(out).manifest.checked == "unchecked"
