"""An evaluation counts what was answered, goes on where it stopped, and names what is broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mllm_export.bundle import open_bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.commands.build import build
from mllm_export.device_tests import kept_embeds, live
from mllm_export.device_tests.cases import AnswerCase
from mllm_export.device_tests.evaluate import evaluate, mcnemar
from mllm_export.device_tests.subject import Answer, Subject
from mllm_export.errors import CheckError
from mllm_export.export.families.mobilevlm import FAMILY
from mllm_export.export.random_checkpoint import write_random_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "model", FAMILY.tiny())


@pytest.fixture(scope="module")
def bundle(model: Path):
    out = model.parent / "bundle"
    build(str(model), "linux-x86_64", out, recipe="f16", no_check=True)
    return open_bundle(out)


def written(folder: Path, count: int = 3, **more: object) -> Path:
    """An evaluation file of a few grey pictures."""
    lines = []
    for at in range(count):
        Image.new("L", (30, 20 + at), 40 * at).save(folder / f"{at}.png")
        row = {"image": f"{at}.png", "question": f"What is {at}?", "answers": ["x"], **more}
        lines.append(json.dumps(row))
    file = folder / "questions.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375)]
)
def test_mcnemar_is_the_exact_two_sided_binomial(lost: int, gained: int, p: float) -> None:
    assert mcnemar(lost, gained) == pytest.approx(p)


def test_both_sides_are_scored_on_the_same_questions(bundle, model: Path, tmp_path: Path) -> None:
    file = written(tmp_path)
    found = evaluate(bundle, file, checkpoint=Checkpoint(model, None))
    assert (found.questions, found.export, found.original) == (3, 0.0, 0.0)
    assert found.p_value == 1.0
    assert found.same_answers is not None
    assert found.same_answers >= 2 / 3
    assert "the original 0.0 %" in found.sentence


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[AnswerCase]:
    """What both sides answered; the first token of the export's is made another."""
    found: list[AnswerCase] = []
    plain, seen = Subject.answer, live.LiveOracle.answer_cases

    def other(subject: Subject, *args: object) -> Answer:
        answer = plain(subject, *args)  # type: ignore[arg-type]  # what the method takes
        return replace(answer, ids=(8 if answer.ids[0] == 7 else 7, *answer.ids[1:]))

    def watched(oracle: live.LiveOracle, subject: Subject) -> list[AnswerCase]:
        cases = seen(oracle, subject)
        found.extend(cases)
        return cases

    monkeypatch.setattr(Subject, "answer", other)
    monkeypatch.setattr(live.LiveOracle, "answer_cases", watched)
    return found


@pytest.mark.parametrize(("size", "tokens"), [("small", 3), ("large", 14)])
def test_both_sides_answer_as_long_as_asked_however_large_the_model(
    bundle,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[AnswerCase],
    size: str,
    tokens: int,
) -> None:
    """Random weights never stop by themselves."""
    if size == "large":
        monkeypatch.setattr(live, "_EFFORTS", live._EFFORTS[-1:])
    evaluate(bundle, written(tmp_path), checkpoint=Checkpoint(model, None), max_tokens=tokens)
    assert [len(case.draft.ids) for case in asked] == [tokens] * 3
    assert [len(case.greedy.ids) for case in asked] == [tokens] * 3


def test_a_stopped_run_goes_on_behind_its_last_whole_line(bundle, tmp_path: Path) -> None:
    file, answers = written(tmp_path), tmp_path / "answers.jsonl"
    evaluate(bundle, file, answers=answers, max_tokens=3)
    lines = answers.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    marked = json.dumps({"export": "x", "original": None}) + "\n"
    answers.write_text("".join([lines[0], marked, lines[2], lines[3][: len(lines[3]) // 2]]))
    found = evaluate(bundle, file, answers=answers, max_tokens=3)
    assert found.export == pytest.approx(1 / 3)
    assert answers.read_text().splitlines(keepends=True)[1:] == [marked, *lines[2:]]


def test_answers_to_another_file_are_not_gone_on_with(bundle, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    evaluate(bundle, written(tmp_path), answers=answers, max_tokens=2)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(CheckError, match="answers of another bundle, evaluation file or setting"):
        evaluate(bundle, written(other, count=2), answers=answers, max_tokens=2)


@pytest.mark.parametrize("against", [False, True])
def test_pictures_are_let_go_behind_their_questions(
    bundle,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alive: list[int],
    against: bool,
) -> None:
    monkeypatch.setattr(kept_embeds, "KEPT_BYTES", 0)
    monkeypatch.setattr("mllm_export.device_tests.evaluate._TOGETHER", 2)
    checkpoint = Checkpoint(model, None) if against else None
    evaluate(bundle, written(tmp_path, count=24), checkpoint=checkpoint, max_tokens=1)
    assert len(alive) == (48 if against else 24)
    # Two of each side, and the eight that the runtime remembers.
    assert max(alive) <= (12 if against else 10)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: holds a list"),
        ('{"image": 3, "question": "?", "answers": ["x"]}', "line 2: key 'image' is 3"),
        ('{"image": "0.png", "question": "?", "answers": []}', "line 2: key 'answers' is empty"),
        (
            '{"image": "0.png", "question": "?", "answers": ["x"], "choices": "ab"}',
            "line 2: key 'choices' is 'ab'",
        ),
        ('{"image": "gone.png", "question": "?", "answers": ["x"]}', "picture 'gone.png'"),
    ],
)
def test_what_is_broken_is_named(bundle, tmp_path: Path, line: str, message: str) -> None:
    file = written(tmp_path, count=1)
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(CheckError, match=message):
        evaluate(bundle, file)


def test_a_metric_that_does_not_fit_is_refused_before_anything_is_asked(
    bundle, tmp_path: Path
) -> None:
    file = written(tmp_path)
    with pytest.raises(CheckError, match="question 1: the vqa metric needs"):
        evaluate(bundle, file, metric="vqa")
    with pytest.raises(CheckError, match="question 1: the choice metric needs key 'choices'"):
        evaluate(bundle, file, metric="choice")
