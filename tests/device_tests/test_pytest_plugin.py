"""A bundle as tests: one for each rung, with the rung's own words when it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mllm_export.bundle import describe_file, open_bundle, write_manifest
from mllm_export.errors import MllmExportError
from mllm_export.toml import read_toml

ROOT = Path(__file__).parents[2]
PLUGIN = "mllm_export.device_tests.pytest_plugin"


def pytest_on(bundle: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    listed = {one.value for one in entry_points(group="pytest11")}
    load = () if PLUGIN in listed else ("-p", PLUGIN)
    command = [
        *(sys.executable, "-m", "pytest", *load, "-rs", "-p", "no:cacheprovider"),
        *("--mllm-bundle", str(bundle), "--junit-xml", str(folder / "out.xml"), *options),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random bundle that was built with its checks, and so holds golden files."""
    from mllm_export.commands.build import build
    from mllm_export.export.families.mobilevlm import FAMILY
    from mllm_export.export.random_checkpoint import write_random_checkpoint

    folder = tmp_path_factory.mktemp("plugin")
    model = write_random_checkpoint(folder / "models" / "model", FAMILY.tiny())
    build(str(model), "linux-x86_64", folder / "bundle", recipe="f16")
    return folder / "bundle"


def test_the_plugin_is_an_entry_point_of_the_package() -> None:
    points = read_toml(ROOT / "pyproject.toml", MllmExportError)["project"]["entry-points"]
    assert points["pytest11"] == {"mllm_export": PLUGIN}


def test_every_rung_is_a_test_and_what_was_not_run_is_skipped(golden: Path, tmp_path: Path) -> None:
    done = pytest_on(golden, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = ElementTree.parse(tmp_path / "out.xml").getroot().findall(".//testcase")
    names = [case.get("name") for case in cases]
    assert names == ["pixels", "prompt", "tower", "weights", "logits", "text", "task", "controls"]
    skipped = {case.get("name") for case in cases if case.find("skipped") is not None}
    assert skipped == {"weights", "task", "controls"}
    assert "needs the original checkpoint" in done.stdout


def test_a_failed_rung_fails_its_test_with_the_figures_and_no_traceback(
    golden: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    bundle = open_bundle(golden)
    file = golden / "golden" / "golden.json"
    kept, manifest = file.read_text(), bundle.manifest
    data = json.loads(kept)
    data["bos_id"] += 1
    data["prompts"][0]["ids"] = [1, 2, 3]
    try:
        file.write_text(json.dumps(data))
        files = tuple(describe_file(golden, one.path, one.role) for one in manifest.files)
        write_manifest(golden, replace(manifest, files=files))
        done = pytest_on(golden, tmp_path)
    finally:
        file.write_text(kept)
        write_manifest(golden, manifest)
    assert done.returncode == 1
    assert "prompt: prompts with other ids 1 (exactly 0)" in done.stdout
    assert "Traceback" not in done.stdout
    assert "1 failed" in done.stdout


def test_a_bundle_of_the_users_own_recipe_passes_against_its_original(
    golden: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    bundle = tmp_path / "bundle"
    shutil.copytree(golden, bundle)
    write_manifest(bundle, replace(open_bundle(golden).manifest, recipe="mine"))
    model = golden.parent / "models" / "model"
    done = pytest_on(bundle, tmp_path, "--mllm-against", str(model))
    assert done.returncode == 0, done.stdout + done.stderr
    cases = ElementTree.parse(tmp_path / "out.xml").getroot().findall(".//testcase")
    skipped = {case.get("name") for case in cases if case.find("skipped") is not None}
    assert skipped == {"task"}


def test_a_folder_that_is_no_bundle_fails_with_one_sentence(tmp_path: Path) -> None:
    done = pytest_on(tmp_path / "nothing", tmp_path)
    assert done.returncode == 1
    assert "bundle.json is missing" in done.stdout
    assert "Traceback" not in done.stdout


def test_without_a_bundle_the_plugin_adds_no_test(tmp_path: Path) -> None:
    listed = {one.value for one in entry_points(group="pytest11")}
    load = () if PLUGIN in listed else ("-p", PLUGIN)
    (tmp_path / "test_own.py").write_text("def test_own(): pass\n")
    command = [sys.executable, "-m", "pytest", *load, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout
