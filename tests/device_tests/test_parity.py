"""The whole ladder on a bundle that the exporter made of a checkpoint that transformers made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parity_fakes import few_samples

from mllm_export.bundle import Bundle, open_bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.commands.opening import Job, plan_job
from mllm_export.device_tests.golden_oracle import GoldenOracle
from mllm_export.device_tests.parity import check, oracle_of
from mllm_export.device_tests.stage import check_stage
from mllm_export.device_tests.subject import Subject, open_subject
from mllm_export.errors import BundleError, CheckError, EngineError
from mllm_export.export.build import build
from mllm_export.progress import silent
from mllm_export.records import from_json, to_json
from mllm_export.report import Report

RECIPES = ("f16", "int4")


@pytest.fixture(scope="session")
def built(
    original: tuple[Path, dict], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Job, Bundle]]:
    folder = tmp_path_factory.mktemp("bundles")
    found = {}
    for recipe in RECIPES:
        job = plan_job(str(original[0]), "linux-x86_64", recipe, None, False)
        args = (job.plan, job.reading, job.checkpoint, job.target, folder / recipe)
        found[recipe] = (job, build(*args, lambda _, __: "unchecked"))
    return found


@pytest.fixture(scope="session")
def golden(built: dict[str, tuple[Job, Bundle]]) -> tuple[Report, Path]:
    job, bundle = built["f16"]
    folder = bundle.folder / "golden"
    return check(bundle, job.checkpoint, plan=job.plan, golden=folder), folder


def failed(report: Report) -> list[str]:
    return [rung.name for rung in report.rungs if rung.status == "failed"]


def test_a_float_bundle_passes_every_rung(golden: tuple[Report, Path]) -> None:
    report = golden[0]
    assert report.passed, report.first_failure
    statuses = {rung.name: rung.status for rung in report.rungs}
    assert statuses.pop("task") == "not_run"
    assert set(statuses.values()) == {"passed"}
    values = {m.name: m.value for rung in report.rungs for m in rung.measurements}
    assert values["worst-token cosine"] > 0.9999999
    assert values["mean KL"] < 1e-4
    assert values["tensors stored otherwise than planned"] == 0


def test_a_four_bit_bundle_passes_and_its_engine_is_judged_apart(
    built: dict[str, tuple[Job, Bundle]],
) -> None:
    job, bundle = built["int4"]
    report = check(bundle, job.checkpoint, plan=job.plan)
    assert report.passed, report.first_failure
    values = {m.name: m.value for rung in report.rungs for m in rung.measurements}
    assert values["engine alone: mean KL"] < 0.02 < values["mean KL"]
    assert {row.scheme for rung in report.rungs for row in rung.tensors} >= {"Q4_0", "w8a8"}


def test_a_report_goes_to_json_and_back(golden: tuple[Report, Path]) -> None:
    report = golden[0]
    assert from_json(Report, to_json(report), "report.json", CheckError) == report


def test_the_stage_says_what_the_check_says(built: dict[str, tuple[Job, Bundle]]) -> None:
    job, bundle = built["f16"]
    source = (job.checkpoint.path, None)
    report = check_stage(
        bundle.folder, bundle.manifest, source, job.plan, None, None, False, silent
    )
    assert report.passed


def test_without_the_original_the_golden_files_count(
    built: dict[str, tuple[Job, Bundle]], golden: tuple[Report, Path]
) -> None:
    report = check(built["f16"][1])
    statuses = {rung.name: rung.status for rung in report.rungs}
    assert report.passed, report.first_failure
    for name in ("pixels", "prompt", "tower", "logits", "text"):
        assert statuses[name] == "passed"
    for name in ("weights", "task", "controls"):
        assert statuses[name] == "not_run"
    assert "--against" in report.rungs[-1].reason


def test_the_golden_files_are_the_same_bytes_each_time(
    built: dict[str, tuple[Job, Bundle]], golden: tuple[Report, Path], tmp_path: Path
) -> None:
    job, bundle = built["f16"]
    check(bundle, job.checkpoint, golden=tmp_path / "again", rungs=["prompt"])
    names = sorted(path.name for path in golden[1].iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (golden[1] / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


class Tampered(Subject):
    """A session whose tower gives half of what it should."""

    def embed_pixels(self, pixels):
        return super().embed_pixels(pixels) / 2

    def embeds(self, picture):
        return super().embeds(picture) / 2


def test_the_golden_files_see_a_tower_that_changed(
    built: dict[str, tuple[Job, Bundle]], golden: tuple[Report, Path]
) -> None:
    bundle = built["f16"][1]
    session = open_subject(bundle).session
    report = check(bundle, subject=Tampered(session))
    assert failed(report)[0] == "tower"
    assert report.first_failure is not None
    assert "relative error 0.5" in report.first_failure.reason


def test_golden_files_that_are_missing_or_broken_are_named(
    golden: tuple[Report, Path], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="holds no golden files; check against the original"):
        GoldenOracle(tmp_path)
    broken = tmp_path / "golden"
    shutil.copytree(golden[1], broken)
    (broken / "values.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(BundleError, match=r"values\.npz: cannot be read"):
        GoldenOracle(broken)
    data = json.loads((broken / "golden.json").read_text())
    (broken / "golden.json").write_text(json.dumps({**data, "surplus": 1}))
    with pytest.raises(BundleError, match=r"golden\.json: key 'surplus'"):
        GoldenOracle(broken)


@pytest.fixture
def damaged(built: dict[str, tuple[Job, Bundle]], tmp_path: Path) -> Callable[[str], Bundle]:
    """A copy of the float bundle in which the middle of one file was overwritten."""

    def make(role: str) -> Bundle:
        bundle = built["f16"][1]
        folder = tmp_path / "damaged"
        shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns("golden"))
        copy = Bundle(folder, bundle.manifest)
        path = copy.path(role)
        data = bytearray(path.read_bytes())
        at = len(data) - 20_000
        data[at : at + 2] = b"\x00\x3c"
        path.write_bytes(bytes(data))
        return copy

    return make


@pytest.mark.parametrize("role", ["decoder", "tower"])
def test_two_bytes_in_a_file_fail_the_weights(
    role: str, damaged: Callable, built: dict[str, tuple[Job, Bundle]]
) -> None:
    report = check(damaged(role), built["f16"][0].checkpoint, rungs=["weights"])
    assert failed(report) == ["weights"]


def test_another_models_checkpoint_fails(
    built: dict[str, tuple[Job, Bundle]], tmp_path: Path
) -> None:
    from tiny_original import write_original

    write_original(tmp_path / "checkpoint", seed=40)
    report = check(
        built["f16"][1], Checkpoint(tmp_path / "checkpoint"), rungs=["tower", "weights", "logits"]
    )
    assert failed(report) == ["tower", "weights", "logits"]


def test_what_the_export_cannot_do_is_a_failed_rung_and_not_a_crash(
    built: dict[str, tuple[Job, Bundle]],
) -> None:
    class Refusing(Subject):
        def embed_pixels(self, pixels):  # noqa: ARG002 - the method it replaces has it
            raise EngineError("the tower gave NaN or Inf for this image")

    job, bundle = built["f16"]
    subject = Refusing(open_subject(bundle).session)
    report = check(bundle, job.checkpoint, rungs=["tower", "prompt"], subject=subject)
    assert failed(report) == ["tower"]
    assert "NaN or Inf" in report.rungs[1].reason
    assert report.rungs[0].status == "passed"


def test_an_evaluation_file_is_asked_and_scored(
    built: dict[str, tuple[Job, Bundle]], tmp_path: Path
) -> None:
    job, bundle = built["f16"]
    lines = []
    for number, picture in enumerate(few_samples(3).pictures.values()):
        picture.open().save(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": "What is it?", "answers": ["red"]})
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    report = check(bundle, job.checkpoint, evaluation=file, rungs=["task", "text"])
    task = next(rung for rung in report.rungs if rung.name == "task")
    assert task.samples == 3
    assert task.status == "passed"
    assert "questions.jsonl, 3 questions" in report.notes[1]


@pytest.mark.parametrize(("answer", "tokens"), [("red", 24), ("red and blue " * 5, None)])
def test_a_known_answer_is_not_cut_however_long(
    built: dict[str, tuple[Job, Bundle]], tmp_path: Path, answer: str, tokens: int | None
) -> None:
    job, bundle = built["f16"]
    next(iter(few_samples(1).pictures.values())).open().save(tmp_path / "0.png")
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"image": "0.png", "question": "What?", "answers": [answer]}))
    oracle = oracle_of(bundle, job.checkpoint, file, silent, lambda: None)
    needed = len(oracle.reference.text_ids(answer)) + 2
    assert oracle.effort.answer_tokens == (tokens or needed)


def test_what_cannot_be_asked_is_refused(built: dict[str, tuple[Job, Bundle]]) -> None:
    job, bundle = built["f16"]
    with pytest.raises(CheckError, match="unknown rung 'towre'; did you mean tower"):
        check(bundle, job.checkpoint, rungs=["towre"])
    with pytest.raises(CheckError, match="an evaluation file needs the original too"):
        check(bundle, evaluation=Path("questions.jsonl"))
    other = replace(bundle.manifest, profile="none")
    with pytest.raises(CheckError, match="unknown profile 'none'"):
        check(Bundle(bundle.folder, other), job.checkpoint)


def test_a_finished_bundle_opens_with_its_golden_files(
    built: dict[str, tuple[Job, Bundle]], golden: tuple[Report, Path]
) -> None:
    values = np.load(golden[1] / "values.npz")
    assert values["embeds-0"].shape == (144, 64)
    assert values["logits-0"].shape == (1, 512)
    assert sum(path.stat().st_size for path in golden[1].iterdir()) < 2_000_000
    assert open_bundle(built["f16"][1].folder).manifest.profile == "default"


def test_drift_and_latency_are_information_beside_the_ladder(golden: tuple[Report, Path]) -> None:
    report, _ = golden
    by_part = {
        part: [one for one in report.drift if one.part == part] for part in ("tower", "decoder")
    }
    assert all(len(rows) >= 2 for rows in by_part.values())
    assert 0 < max(one.relative_error for one in by_part["tower"]) < 1e-4
    assert max(one.relative_error for one in by_part["decoder"]) < 0.02
    assert [one.stage for one in report.latency][:3] == ["preprocess", "tower", "prefill"]
    assert all(one.low_ms <= one.median_ms <= one.high_ms for one in report.latency)
    threads = {one.threads for one in report.latency}
    assert threads == {one.threads for one in report.latency if one.stage == "yardstick"}
    assert report.device
