"""Scores as the benchmarks define them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_export.device_tests.scoring import choice, exact, normalised, vqa, with_choices
from mllm_export.errors import CheckError

TEN = ("red",) * 3 + ("dark red",) * 2 + ("maroon",) * 5


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("maroon", 1.0),
        # Seven left-outs leave 3 of 3 agreeing, three leave 2 of 3.
        ("red", (7 * 1 + 3 * 2 / 3) / 10),
        ("dark red", (8 * 2 / 3 + 2 * 1 / 3) / 10),
        ("blue", 0.0),
        ("A Maroon.", 1.0),
    ],
)
def test_soft_accuracy_is_the_mean_over_people_left_out(answer: str, score: float) -> None:
    assert vqa(answer, TEN) == pytest.approx(score)


def test_soft_accuracy_of_one_known_answer_is_refused() -> None:
    with pytest.raises(CheckError, match=r"more than 3 people .VQA v2 has 10., found 1"):
        vqa("red", ("red",))


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("The Two Dogs!", "2 dogs!"),
        ("1,000", "1000"),
        ("yes, it is", "yes it is"),
        ("red/white", "red white"),
        ("3.5", "3.5"),
        ("end.", "end"),
        ("don't", "dont"),
        ("  None ", "0"),
    ],
)
def test_answers_are_normalised_as_vqa_does(raw: str, plain: str) -> None:
    assert normalised(raw) == plain


@given(st.text())
def test_normalising_twice_changes_no_verdict(text: str) -> None:
    assert vqa(text, (text,) * 10) == 1.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("B", 1.0), ("(b)", 1.0), ("B. a dog", 1.0), ("a dog", 1.0), ("Dog", 1.0), ("b) dog", 1.0),
        ("A", 0.0), ("Both", 0.0), ("", 0.0), ("Z", 0.0), ("cat", 0.0), ("Because", 0.0),
    ],
)  # fmt: skip
def test_a_choice_is_named_by_letter_or_text(answer: str, score: float) -> None:
    assert choice(answer, ("B",), ("cat", "dog")) == score
    assert choice(answer, ("dog",), ("cat", "dog")) == score


def test_a_choice_without_choices_is_refused() -> None:
    with pytest.raises(CheckError, match="needs key 'choices'"):
        choice("A", ("A",))


def test_exact_is_exact() -> None:
    assert exact(" yes\n", ("yes", "yeah")) == 1
    assert exact("Yes", ("yes",)) == 0


def test_choices_are_lettered_under_the_question() -> None:
    text = with_choices("Which?", ("cat", "dog"))
    assert text.splitlines()[:3] == ["Which?", "A. cat", "B. dog"]
    assert with_choices("Which?", ()) == "Which?"
