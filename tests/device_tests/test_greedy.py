from __future__ import annotations

import numpy as np
import pytest

from mllm_export.device_tests.greedy import Asked, compare, draft_tokens, finish, forced
from mllm_export.device_tests.subject import Answer

STOP = 2


def own_answer(reference, ids: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """The plainest greedy decoding there is."""
    from mllm_export.device_tests.reference import Forced

    tokens: list[int] = []
    while len(tokens) < limit:
        (rows,) = reference.logits([Forced(ids=(*ids, *tokens), images=(), rows=1)])
        token = int(rows[-1].argmax())
        if token == STOP:
            break
        tokens.append(token)
    return tuple(tokens)


@pytest.mark.parametrize("keep", [0, 1, 3, 6])
def test_the_answer_is_the_plain_greedy_one_whatever_the_draft_was(reference, keep: int) -> None:
    ids = tuple(reference.prompt_ids("What is it?", 0))
    expected = own_answer(reference, ids, 6)
    assert len(expected) == 6
    drafted = (*expected[:keep], *([7] * (6 - keep)))
    asked = Asked(ids=ids, images=(), draft=Answer(ids=drafted, finished=False))
    rows = reference.logits([forced(asked, draft_tokens(asked.draft, STOP))])[0]
    first = compare(asked.draft, rows, (STOP,))
    assert first.agreed == keep
    assert first.same == (keep == 6)
    (done,) = finish(reference, [asked], [first], 6)
    assert done.ids == expected


def test_a_gap_is_how_much_likelier_the_original_finds_its_own_token() -> None:
    rows = np.log(np.array([[0.1, 0.6, 0.1, 0.2]], np.float32))
    found = compare(Answer(ids=(3,), finished=False), rows, (STOP,))
    assert found.gap == pytest.approx(np.log(3))
    assert not found.same


def test_a_draft_that_ended_too_early_differs_at_its_end() -> None:
    rows = np.eye(4, dtype=np.float32)[[1, 3]] * 9
    found = compare(Answer(ids=(1,), finished=True), rows, (STOP,))
    assert (found.agreed, found.same, found.ids) == (1, False, (1, 3))


def test_an_original_that_stops_earlier_has_the_shorter_answer() -> None:
    rows = np.eye(4, dtype=np.float32)[[1, STOP]] * 9
    found = compare(Answer(ids=(1, 3), finished=False), rows, (STOP,))
    assert (found.ids, found.finished, found.same) == ((1,), True, False)
