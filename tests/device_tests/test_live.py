"""What the original is asked, and how far it goes on by itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from parity_fakes import FakeSession, few_samples
from scripted import Saying, Scripted, knowing

from mllm_export.device_tests.cases import AnswerCase
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
