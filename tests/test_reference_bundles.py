"""The main job, whole: the reference checkpoint becomes bundles that pass and answer."""

import json
from pathlib import Path

import pytest

from mllm_export.checkpoint import Checkpoint
from mllm_export.commands.opening import reference_evaluation, reference_folder
from mllm_export.device_tests.parity import check
from mllm_export.errors import BundleError
from mllm_export.records import from_json
from mllm_export.report import Report, Rung
from mllm_export.runtimes import load, session
from tests.conftest import Build
from tests.golden_bytes import build as build_unchecked
from tests.golden_bytes import hashes, held_recipes

RECIPES = ("f16", "int8", "int4")

HELD = [
    pytest.param(name, marks=[pytest.mark.slow] * name.endswith(("_s", "_l")))
    for name in held_recipes()
]
"""Whose bytes are recorded; small and large mixtures store the layouts of the medium ones."""


def report_of(build: Build, recipe: str) -> Report:
    bundle = build(recipe)
    file = bundle.folder / "report.json"
    return from_json(Report, file.read_bytes(), file, BundleError)


def measured(report: Report, rung: str, name: str) -> float:
    (found,) = (r for r in report.rungs if r.name == rung)
    (value,) = (m.value for m in found.measurements if m.name == name)
    return value


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_rung_that_the_reference_can_be_held_against_passes(
    reference_bundle: Build, recipe: str
) -> None:
    report = report_of(reference_bundle, recipe)
    assert reference_bundle(recipe).manifest.checked == "passed"
    assert {r.name: r.status for r in report.rungs} == dict.fromkeys(
        ("pixels", "prompt", "tower", "weights", "logits", "text", "task", "controls"), "passed"
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_rung_says_against_what_on_how_many_and_why_that_limit(
    reference_bundle: Build, recipe: str
) -> None:
    for rung in report_of(reference_bundle, recipe).rungs:
        assert rung.reference, rung.name
        assert rung.samples > 0, rung.name
        judged = [m for m in rung.measurements if m.passed is not None]
        assert judged, rung.name
        for m in judged:
            assert m.limit_from, f"{rung.name}: {m.name}"


def test_errors_are_counted_in_noise_floors_only_where_that_is_judged(
    reference_bundle: Build,
) -> None:
    name = "relative error over the noise floor"
    assert measured(report_of(reference_bundle, "f16"), "tower", name) > 0
    report = report_of(reference_bundle, "int8")
    assert measured(report, "tower", f"float graph: {name}") > 0
    with pytest.raises(ValueError, match="not enough values"):
        measured(report, "tower", name)


def test_the_float_recipe_is_as_close_as_promised(reference_bundle: Build) -> None:
    report = report_of(reference_bundle, "f16")
    assert measured(report, "tower", "worst-token cosine") >= 0.99999
    assert measured(report, "logits", "top-1 agreement") >= 0.995


@pytest.mark.parametrize(("recipe", "points"), [("f16", 0.5), ("int8", 1.0), ("int4", 3.0)])
def test_quantization_costs_no_more_than_promised(
    reference_bundle: Build, recipe: str, points: float
) -> None:
    report = report_of(reference_bundle, recipe)
    assert measured(report, "task", "accuracy of the original") >= 95.0
    assert measured(report, "task", "accuracy lost") <= points


def few_questions(folder: Path, report: Report) -> Path:
    """Twenty of them, one of which four bits lose."""
    (task,) = (rung for rung in report.rungs if rung.name == "task")
    losses = task.paired[0].values
    lost = [at for at, one in enumerate(losses) if one > 0][:1]
    kept = [at for at, one in enumerate(losses) if one == 0][:19]
    questions = reference_evaluation()
    lines = questions.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(lines[at]) for at in (*lost, *kept)]
    file = folder / "few.jsonl"
    file.write_text(
        "".join(
            json.dumps({**row, "image": str(questions.parent / row["image"])}) + "\n"
            for row in rows
        )
    )
    assert len(rows) == 20
    return file


def test_one_lost_answer_of_few_is_no_failure_and_an_ignored_image_is(
    reference_bundle: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = reference_bundle("int4")
    file = few_questions(tmp_path, report_of(reference_bundle, "int4"))

    def task() -> Rung:
        original = Checkpoint(reference_folder())
        (rung,) = check(bundle, original, evaluation=file, rungs=["task"]).rungs
        return rung

    honest = task()
    (lost,) = (m for m in honest.measurements if m.name == "accuracy lost")
    assert (lost.value, lost.limit, honest.status) == (5.0, 10.0, "passed")
    plain = session.splice
    monkeypatch.setattr(
        session, "splice", lambda ids, images, vocab: plain(ids, [0 * i for i in images], vocab)
    )
    assert task().status == "failed"


def test_a_bundle_answers_held_out_questions(reference_bundle: Build) -> None:
    questions = reference_evaluation()
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()[:25]]
    with load(reference_bundle("int4").folder) as session:
        answers = [session.answer(row["question"], questions.parent / row["image"]) for row in rows]
    right = sum(answer in row["answers"] for answer, row in zip(answers, rows, strict=True))
    assert right >= 22


def test_the_demo_pictures_are_answered_rightly(reference_bundle: Build) -> None:
    folder = reference_folder().parent / "demo"
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    with load(reference_bundle("int4").folder) as session:
        for row in rows:
            assert session.answer(row["question"], folder / row["image"]) in row["answers"]


def recorded() -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = json.loads(
        (Path(__file__).parent / "golden_bytes.json").read_text(encoding="utf-8")
    )
    return rows


def test_bytes_are_recorded_of_every_recipe_that_does_not_calibrate() -> None:
    assert list(recorded()) == held_recipes(), "write the record again: see golden_bytes.py"


@pytest.mark.parametrize("recipe", HELD)
def test_the_artifacts_are_the_bytes_that_were_recorded(
    recipe: str, reference_bundle: Build, tmp_path: Path
) -> None:
    """If a change of bytes is meant, write the record again: see golden_bytes.py."""
    if recipe in RECIPES:
        folder = reference_bundle(recipe).folder
    else:
        folder = build_unchecked(recipe, tmp_path / recipe)
    assert hashes(folder) == recorded()[recipe]
