"""A build leaves the state of the prompt's beginning where the device computes as it does."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mllm_export.bundle import open_bundle
from mllm_export.cli import app
from mllm_export.commands.opening import reference_folder
from mllm_export.runtimes import load, opening
from mllm_export.runtimes.beginning import FOLDER
from mllm_export.runtimes.machine import architecture

_TARGETS = {"x86_64": "linux-x86_64", "arm64": "linux-arm64"}


@pytest.mark.skipif(architecture() not in _TARGETS, reason="no target is known for this machine")
@pytest.mark.parametrize("here", [True, False], ids=["for this machine", "for another"])
def test_a_large_decoder_gets_one_if_it_is_for_this_kind_of_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    monkeypatch.setattr(opening, "SMALL_BYTES", 0)
    monkeypatch.setenv("MLLM_EXPORT_CACHE", str(tmp_path / "cache"))
    other = next(name for arch, name in _TARGETS.items() if arch != architecture())
    target = _TARGETS[architecture()] if here else other
    out = tmp_path / "bundle"
    asked = ["build", str(reference_folder()), "--target", target, "--recipe", "int4"]
    done = CliRunner().invoke(app, [*asked, "--no-check", "-o", str(out)])
    assert done.exit_code == 0, done.output
    bundle = open_bundle(out)
    assert (bundle.find("prefix") is not None) == here
    question = "Which colour is it?"
    picture = next(reference_folder().parent.glob("evaluation/*.png"))
    with load(out, threads=1) as session:
        step = next(session.generate(question, picture, max_tokens=1))
    assert step.reused_positions > 10
    # The device of another kind computes its own.
    assert (tmp_path / "cache" / FOLDER).exists() == (not here)


def test_a_small_decoder_computes_it_sooner_than_it_reads_a_file(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    target = _TARGETS.get(architecture(), "linux-x86_64")
    asked = ["build", str(reference_folder()), "--target", target, "--recipe", "int4"]
    done = CliRunner().invoke(app, [*asked, "--no-check", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert open_bundle(out).find("prefix") is None
