"""Every family's small twin goes the whole way: spec, plan, build, run, parity with the original.

A new file in export/families is tested here by being there.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mllm_export.bundle import open_bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.cli import app
from mllm_export.export.family import FAMILIES, cover, read_spec
from mllm_export.export.random_checkpoint import write_random_checkpoint

PASSED = ("pixels", "prompt", "tower", "weights", "logits", "text", "controls")


@pytest.fixture(scope="module", params=FAMILIES.names())
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's own published layout, random weights."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return write_random_checkpoint(folder, FAMILIES[request.param].tiny())


def build(model: Path, out: Path, recipe: str) -> dict[str, str]:
    """Rung to verdict of a checked build."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mllm_export", "build", str(model)),
            *("--target", "linux-x86_64", "--recipe", recipe, "-o", str(out)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    return {rung["name"]: rung["status"] for rung in report["rungs"]}


def test_every_tensor_of_the_tiny_twin_is_covered(model: Path) -> None:
    checkpoint = Checkpoint(model)
    reading = read_spec(checkpoint)
    cover(checkpoint, reading)
    assert reading.spec.family == model.parent.name[:-1]


def test_inspect_tells_every_part_and_what_is_left_out(model: Path) -> None:
    spec = read_spec(Checkpoint(model)).spec
    shown = CliRunner().invoke(app, ["inspect", str(model)], env={"COLUMNS": "300"})
    assert shown.exit_code == 0, shown.output
    parts = (spec.projector.kind, spec.decoder.kind, *(one.kind for one in spec.encoders))
    for word in (spec.family, *parts, "Prompt (", "Left out: ", "Every tensor"):
        assert word in shown.output


def test_the_float_bundle_computes_the_original_and_answers(model: Path, tmp_path: Path) -> None:
    verdicts = build(model, tmp_path / "f16", "f16")
    assert {rung: verdicts[rung] for rung in PASSED} == dict.fromkeys(PASSED, "passed")
    from mllm_export.runtimes import load

    assert open_bundle(tmp_path / "f16").manifest.checked == "passed"
    with load(tmp_path / "f16") as session:
        steps = list(session.generate("What is it?", max_tokens=3))
    assert steps
    assert steps[0].prompt_positions > 10


@pytest.mark.slow
def test_the_int4_bundle_is_checked_too(model: Path, tmp_path: Path) -> None:
    verdicts = build(model, tmp_path / "int4", "int4")
    assert {rung: verdicts[rung] for rung in PASSED} == dict.fromkeys(PASSED, "passed")
