"""The second trained model, whole: LLaVA-Phi becomes a bundle that passes and answers."""

import json

import pytest

from mllm_export.commands.opening import reference_evaluation
from mllm_export.runtimes import load
from tests.conftest import Build
from tests.test_reference_bundles import measured, report_of

pytestmark = pytest.mark.slow


def test_every_rung_passes_at_four_bits(phi_bundle: Build) -> None:
    report = report_of(phi_bundle, "int4")
    assert phi_bundle("int4").manifest.checked == "passed"
    assert {r.name: r.status for r in report.rungs} == dict.fromkeys(
        ("pixels", "prompt", "tower", "weights", "logits", "text", "task", "controls"), "passed"
    )


def test_four_bits_cost_no_more_than_promised(phi_bundle: Build) -> None:
    report = report_of(phi_bundle, "int4")
    assert measured(report, "task", "accuracy of the original") >= 95.0
    assert measured(report, "task", "accuracy lost") <= 3.0


def test_the_bundle_answers_held_out_questions_and_stops(phi_bundle: Build) -> None:
    questions = reference_evaluation()
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()[:25]]
    with load(phi_bundle("int4").folder) as session:
        answers = [session.answer(row["question"], questions.parent / row["image"]) for row in rows]
    right = sum(answer in row["answers"] for answer, row in zip(answers, rows, strict=True))
    assert right >= 22
