"""An encoder alone through the verbs: what is said of it, kept of it, and refused for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mllm_export.errors import BundleError
from mllm_export.history import read
from mllm_export.runtimes import load
from tests.export.embedders import tiny_embedders as tiny
from tests.mllm_export.commands.conftest import Run

NEVER = "was never checked against the original (built with --no-check)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny.clip(tmp_path_factory.mktemp("encoders") / "clip"))


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Path:
    """Its bundle, left unchecked; do not change it."""
    out = checkpoint.with_name("bundle")
    asked = ("build", checkpoint, "--target", "linux-x86_64", "-o", out, "--no-check")
    subprocess.run([sys.executable, "-m", "mllm_export", *map(str, asked)], check=True)
    return out


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.mark.parametrize("labels", [(), ("--label", "a fox", "--label", "a red circle")])
def test_run_says_that_an_encoder_was_never_checked(
    command: Run, encoder: Path, picture: Path, labels: tuple[str, ...]
) -> None:
    outcome = command("run", encoder, "--image", picture, *labels, "--json")
    assert outcome.code == 0, outcome.err
    assert f"{encoder} {NEVER}" in outcome.err
    assert len(json.loads(outcome.out)) == (2 if labels else 24)


def test_run_says_nothing_of_one_that_passed(
    command: Run, encoder: Path, picture: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(encoder, tmp_path / "bundle"))
    manifest = json.loads((copy / "bundle.json").read_bytes())
    (copy / "bundle.json").write_text(json.dumps({**manifest, "checked": "passed"}))
    outcome = command("run", copy, "--image", picture)
    assert outcome.code == 0
    assert "checked" not in outcome.err


def test_a_label_that_is_no_utf8_is_one_line(command: Run, encoder: Path, picture: Path) -> None:
    outcome = command("run", encoder, "--image", picture, "--label", "caf\udce9")
    assert outcome.code == 2
    assert "holds half a character, '\\udce9' at place " in outcome.error


def test_a_check_of_an_encoder_is_kept_in_a_history(
    command: Run, encoder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "history.jsonl"
    kept = ("--history", file, "--when", "2026-01-02T03:04:05+00:00")
    outcome = command("check", encoder, "--against", checkpoint, *kept)
    assert outcome.code == 0, outcome.err
    (line,) = read(file)
    assert (line.when, line.passed) == (kept[3], True)
    assert line.report.family == "clip"
    assert {Path(source.path).name for source in line.sources} >= {"model.safetensors"}


CHECK: dict[str, tuple[object, ...]] = {
    "--vision-tower": ("inside",),
    "--questions": (5,),
    "--cost": (),
    "--cost-record": ("costs.json",),
    "--record-cost": (),
}
RUN: dict[str, tuple[object, ...]] = {
    "--prompt": ("What is it?",),
    "--max-tokens": (5,),
    "--temperature": (0.5,),
    "--seed": (3,),
}


@pytest.mark.parametrize("option", [*CHECK, *RUN])
def test_an_option_for_answers_is_refused_for_an_encoders_bundle(
    command: Run, encoder: Path, option: str
) -> None:
    verb, values = ("run", RUN[option]) if option in RUN else ("check", CHECK[option])
    outcome = command(verb, encoder, option, *values)
    assert outcome.code == 2
    assert f"{option} is for models that answer; {encoder} is an encoder alone" in outcome.error


@pytest.mark.parametrize("verb", ["inspect", "plan", "build"])
def test_a_vision_tower_is_refused_for_a_checkpoint_that_is_one(
    command: Run, checkpoint: Path, tmp_path: Path, verb: str
) -> None:
    asked = () if verb == "inspect" else ("--target", "linux-x86_64")
    out = ("-o", tmp_path / "bundle") if verb == "build" else ()
    outcome = command(verb, checkpoint, "--vision-tower", tmp_path, *asked, *out)
    assert outcome.code == 2
    assert f"--vision-tower is for models that answer; {checkpoint} is an" in outcome.error
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("prompt", [(), ("--prompt", "What is it?")])
def test_a_label_is_refused_for_a_model_that_answers(
    command: Run, unchecked: Path, prompt: tuple[str, ...]
) -> None:
    outcome = command("run", unchecked, "--label", "a fox", *prompt)
    assert outcome.code == 2
    assert "--label is for an encoder alone; " in outcome.error


def test_what_opens_models_that_answer_says_what_opens_an_encoder(
    command: Run, encoder: Path, tmp_path: Path
) -> None:
    said = f"{encoder} is an encoder alone, which answers no questions; open it with 'run'"
    with pytest.raises(BundleError) as caught:
        load(encoder)
    assert said in str(caught.value)
    file = tmp_path / "questions.jsonl"
    file.write_text("{}", encoding="utf-8")
    for asked in (
        ("evaluate", encoder, "--evaluation", file),
        ("diagnose", encoder, "--against", tmp_path),
    ):
        outcome = command(*asked)
        assert outcome.code == 2
        assert said in outcome.error
