"""Recipes of Core ML's own schemes through `build`, held against the original (slow)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mllm_export.bundle import open_bundle
from mllm_export.commands.opening import REFERENCE, open_checkpoint
from mllm_export.device_tests.parity import check
from mllm_export.export.mil_program import read_program

pytestmark = pytest.mark.slow

RECIPE = """\
description = "for a test"
tower_scheme = "{scheme}"
decoder_scheme = "F16"

[[decoder]]
tensors = "*"
scheme = "F16"
"""
TARGET = """\
name = "{name}"
description = "for a test"
arch = "arm64"
system = "ios"
cpu_features = ["asimd"]
memory_mib = 3072
threads = 4
formats = ["coreml", "gguf"]
vision_engine = "coreml"
decoder_engine = "llama_cpp"
vision_preset = ""
deployment = "{deployment}"
image_input = {image_input}
context_tokens = 2048
default_recipe = "int4"
source = "for a test"
"""


def build(target: str, recipe: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = ["build", REFERENCE, "--target", target, "--recipe", recipe, "--no-check"]
    return subprocess.run(
        [sys.executable, "-m", "mllm_export", *command, "-o", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def recipe(tmp_path):
    def write(scheme: str) -> str:
        file = tmp_path / f"{scheme}.toml"
        file.write_text(RECIPE.format(scheme=scheme))
        return str(file)

    return write


@pytest.fixture
def target(tmp_path):
    def write(deployment: str, image_input: bool = False) -> str:
        file = tmp_path / f"{deployment}.toml"
        words = {"name": deployment, "image_input": str(image_input).lower()}
        file.write_text(TARGET.format(deployment=deployment, **words))
        return str(file)

    return write


@pytest.mark.parametrize(
    ("on", "scheme", "opset", "passes"),
    [
        # 4 bits to the nearest cost this tower of width 64 more than the limits allow.
        ("macos-arm64", "w4g32", "CoreML8", False),
        ("ios-arm64", "pal4", "CoreML8", False),
        ("ios-arm64", "pal6", "CoreML8", True),
        ("iOS17", "w8", "CoreML7", True),
        ("macOS14", "f16", "CoreML7", True),
    ],
)
def test_a_scheme_of_core_ml_goes_through_build(
    tmp_path, recipe, target, on, scheme, opset, passes
):
    out = tmp_path / "bundle"
    done = build(target(on) if on[-1].isdigit() and "-" not in on else on, recipe(scheme), out)
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(out)
    program = read_program(bundle.path("tower"))
    assert program.opset == opset
    assert (program.counts().get("scaled_dot_product_attention", 0) > 0) == (opset == "CoreML8")
    assert f"{scheme} weights" in (out / "README.md").read_text()
    report = check(bundle, open_checkpoint(REFERENCE, None), rungs=["tower", "weights"])
    assert report.passed == passes, [rung.reason for rung in report.rungs]
    tower, weights = report.rungs
    assert weights.status == "passed", weights.reason
    own = "program in float32, on its own weights: relative error"
    assert next(m for m in tower.measurements if m.name == own).passed
    of_tower = {row.scheme for row in weights.tensors if row.name.startswith("tower.")}
    assert of_tower == {scheme, "f16"}


def test_a_scheme_that_the_system_lacks_is_refused_by_build(tmp_path, recipe, target):
    done = build(target("iOS17"), recipe("pal4"), tmp_path / "bundle")
    assert done.returncode == 2
    assert "'pal4' needs iOS 18 or macOS 15" in " ".join(done.stderr.split())


def test_a_target_that_feeds_pictures_is_checked_on_pictures(tmp_path, recipe, target):
    out = tmp_path / "bundle"
    done = build(target("macOS15", image_input=True), recipe("f16"), out)
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(out)
    assert read_program(bundle.path("tower")).image_inputs == ("pixel_values",)
    report = check(bundle, open_checkpoint(REFERENCE, None), rungs=["tower"])
    assert report.passed, [rung.reason for rung in report.rungs]
    assert "pixelBuffer" in (out / "README.md").read_text()
