"""What the original is asked, and how far it goes on by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from parity_fakes import FakeSession, few_samples
from scripted import Saying, Scripted, knowing

from mllm_export.device_tests import kept_embeds, live
from mllm_export.device_tests.cases import AnswerCase
from mllm_export.device_tests.distributions import relative_error
from mllm_export.device_tests.live import LiveOracle
from mllm_export.device_tests.samples import Samples
from mllm_export.device_tests.subject import Subject
from mllm_export.progress import silent


def answers(original: Scripted, session: FakeSession, samples: Samples) -> Sequence[AnswerCase]:
    oracle = LiveOracle(original, samples, 512, silent)
    assert not oracle.effort.goes_on
    return oracle.answer_cases(Subject(session))


@pytest.mark.parametrize("said", ["no", "", "redo"])
def test_a_large_original_finishes_an_answer_that_is_right(reference, said: str) -> None:
    original = Scripted(reference, "red")
    for case in answers(original, Saying(reference, said), knowing("red")):
        assert (case.greedy.ids, case.greedy.finished) == (original.answer, True)


def test_a_large_original_stops_where_it_is_wrong_already(reference) -> None:
    """Its whole answer would cost two passes more and change no verdict."""
    original = Scripted(reference, "red")
    for case in answers(original, Saying(reference, "no"), knowing("blue")):
        assert not case.greedy.finished
    assert len(original.asked) <= 2


def test_a_large_original_asked_what_nobody_knows_runs_once(reference) -> None:
    original = Scripted(reference, "red")
    answers(original, Saying(reference, "no"), few_samples(3))
    assert len(original.asked) == 1


QUESTIONS = 12


def test_a_check_holds_the_pictures_of_one_group_of_questions(
    reference, monkeypatch: pytest.MonkeyPatch, alive: list[int]
) -> None:
    monkeypatch.setattr(live, "GROUP", 2)
    monkeypatch.setattr(kept_embeds, "KEPT_BYTES", 0)
    oracle = LiveOracle(Scripted(reference, "red"), few_samples(QUESTIONS), 512, silent)
    subject = Subject(Saying(reference, "red"))
    assert len(oracle.answer_cases(subject)) == QUESTIONS
    assert len(alive) >= 2 * QUESTIONS
    # Two sides of a group and of the further turns, and what is compared on their logits.
    assert max(alive) <= 4 + 4 + oracle.effort.sequences
    held = [one for case in oracle.logit_cases(subject) for one in case.embeds]
    assert held
    # A view would keep the whole batch that it was cut from.
    assert all(one.base is None for one in held)


def test_what_memory_allows_is_embedded_once(reference, alive: list[int]) -> None:
    oracle = LiveOracle(Scripted(reference, "red"), few_samples(4), 512, silent)
    oracle.answer_cases(Subject(Saying(reference, "red")))
    assert len(alive) == max(alive) == 2 * 4


def test_groups_change_no_answer(reference, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> list[tuple[str, tuple[int, ...]]]:
        oracle = LiveOracle(reference, few_samples(5), 512, silent)
        oracle.effort = replace(oracle.effort, answer_tokens=4, sequences=1)
        found = oracle.answer_cases(Subject(Saying(reference, "red")))
        return [(case.question.text, case.greedy.ids) for case in found]

    whole = asked()
    monkeypatch.setattr(live, "GROUP", 2)
    monkeypatch.setattr(kept_embeds, "KEPT_BYTES", 0)
    assert asked() == whole


def test_pictures_go_through_the_original_in_batches(
    reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_BATCH", 3)
    sizes: list[int] = []

    class Counting(Scripted):
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            sizes.append(len(pixels))
            return reference.embed(pixels)

    samples = few_samples(7)
    oracle = LiveOracle(Counting(reference, "red"), samples, 512, silent)
    pictures = list(samples.pictures.values())
    found = oracle.embeds(pictures)
    assert sizes == [3, 3, 1]
    one = reference.embed(oracle.pixels(pictures[4]))[0]
    assert relative_error(one, found[4]) < 1e-5
