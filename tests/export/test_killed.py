"""A build killed at a chosen moment: no loader takes what is left, and the next build does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from mllm_export.bundle import open_bundle
from mllm_export.embedder import open_embedder
from mllm_export.errors import BundleError
from mllm_export.export.families.mobilevlm import FAMILY
from mllm_export.export.random_checkpoint import write_random_checkpoint

ARTIFACTS = ("tower.onnx", "decoder.gguf")

KILLED = """
import importlib, os, signal, sys
from mllm_export.cli import main
module, name, when, of = sys.argv[1:5]
owner = importlib.import_module(module)
plain = getattr(owner, name)
def killed(*given, **named):
    chosen = str(given[0]).endswith(of)
    if when == "after" or not chosen:
        plain(*given, **named)
    if chosen:
        os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, killed)
sys.argv = ["mllm-export", *sys.argv[5:]]
main()
"""
"""The command, killed before or after it calls one function with a first argument so called."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "model", FAMILY.tiny())


def asked(model: Path, out: Path, recipe: str = "f16") -> list[str]:
    return ["build", str(model), "--target", "linux-x86_64", "--recipe", recipe, "-o", str(out)]


def killed(moment: tuple[str, str, str, str], command: list[str], folder: Path) -> Path:
    """The one folder that is left."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *moment, *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    (left,) = folder.iterdir()
    assert left.name.endswith(".partial")
    return left


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in ARTIFACTS}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


Undisturbed = Callable[[str], dict[str, bytes]]


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What a build of that recipe leaves."""

    @cache
    def build(recipe: str) -> dict[str, bytes]:
        out = tmp_path_factory.mktemp("undisturbed") / "bundle"
        command = [sys.executable, "-m", "mllm_export", *asked(model, out, recipe), "--no-check"]
        subprocess.run(command, check=True, capture_output=True)
        return contents(out)

    return build


TAKEN_UP = {
    "the tokenizer stands": ("mllm_export.export.build", "_copy_tokenizer", "after", ""),
    "the disk is waited for": ("mllm_export.export.partial", "_sync", "after", "decoder.gguf"),
}


@pytest.mark.parametrize(
    ("moment", "recipe"),
    [
        ("the tokenizer stands", "f16"),
        ("the disk is waited for", "f16"),
        ("the disk is waited for", "int8"),  # its tower was made from a float one
    ],
)
def test_artifacts_of_a_build_killed_when_all_stood_are_taken_up(
    moment: str, recipe: str, model: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    out = tmp_path / "bundle"
    command = [*asked(model, out, recipe), "--no-check"]
    left = killed(TAKEN_UP[moment], command, tmp_path)
    before = times(left)
    with pytest.raises(BundleError, match="its build did not end; run it again"):
        open_bundle(left)
    subprocess.run([sys.executable, "-m", "mllm_export", *command], check=True)
    assert times(out) == before
    assert contents(out) == undisturbed(recipe)
    assert list(tmp_path.iterdir()) == [out]


def test_a_build_killed_before_it_took_its_name_is_refused_though_its_manifest_stands(
    model: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    out = tmp_path / "bundle"
    command = [*asked(model, out), "--no-check"]
    moment = ("mllm_export.export.partial", "_sync", "after", "bundle.json")
    left = killed(moment, command, tmp_path)
    assert contents(left) == undisturbed("f16")
    for opened in (open_bundle, open_embedder):
        with pytest.raises(BundleError, match="its build did not end; run it again"):
            opened(left)
    subprocess.run([sys.executable, "-m", "mllm_export", *command], check=True)
    assert contents(out) == undisturbed("f16")
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_artifacts_of_a_build_killed_behind_its_checks_are_taken_up(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    moment = ("mllm_export.export.build", "take_name", "before", "")
    left = killed(moment, asked(model, out), tmp_path)
    before = times(left)
    assert {"golden", "tokenizer", "report.json"} <= {path.name for path in left.iterdir()}
    subprocess.run([sys.executable, "-m", "mllm_export", *asked(model, out)], check=True)
    assert times(out) == before
    assert open_bundle(out).manifest.checked == "passed"
