"""A big file is held to its limit; a small one to what so few questions can tell, and no less."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mllm_export.device_tests.accuracy import RESOLVING, accuracy, allowed_answers
from mllm_export.device_tests.profile import Limits, load_profile, profile_names
from mllm_export.report import Measurement

POINTS = {"f16": 0.5, "int8": 1.0, "int4": 3.0, "int2": 15.0}
"""Of profiles/default.toml."""


def judged(kind, questions: int, lost: int, gained: int = 0) -> Measurement:
    original = np.ones(questions, np.bool_)
    original[:gained] = False
    export = np.ones(questions, np.bool_)
    export[gained : gained + lost] = False
    limits = Limits(load_profile("default"), kind, kind, True)
    (found,) = (m for m in accuracy(limits, original, export) if m.name == "accuracy lost")
    assert found.value == pytest.approx(100 * (lost - gained) / questions)
    return found


@pytest.mark.parametrize(
    ("kind", "questions", "most"),
    [
        ("f16", 500, 2), ("int8", 500, 5), ("int4", 500, 15), ("int2", 500, 75),
        ("f16", 200, 1), ("int8", 200, 2), ("int4", 200, 6),
        # Fewer: by the binomial distribution, and never more than 200 questions may lose.
        ("int4", 199, 6), ("int4", 100, 6), ("int4", 50, 4), ("int4", 33, 3), ("int4", 20, 2),
        ("int4", 10, 1), ("int4", 1, 0), ("int8", 100, 2), ("int8", 20, 1), ("int8", 5, 0),
        ("f16", 199, 1), ("f16", 20, 1), ("f16", 10, 0),
    ],
)  # fmt: skip
def test_so_many_answers_may_be_lost_and_not_one_more(kind, questions: int, most: int) -> None:
    assert judged(kind, questions, most).passed
    assert not judged(kind, questions, most + 1).passed


@pytest.mark.parametrize("kind", POINTS)
@pytest.mark.parametrize("questions", [RESOLVING, 201, 333, 500, 10_000])
def test_a_big_file_keeps_the_profiles_limit_and_its_reason(kind, questions: int) -> None:
    found = judged(kind, questions, 0)
    assert found.limit == POINTS[kind]
    assert "by chance" not in found.limit_from


def test_a_limit_that_was_widened_says_why_and_for_how_many() -> None:
    found = judged("int4", 20, 1)
    assert found.limit == 10.0
    assert found.limit_from.startswith("profile default, int4: points that the recipe may cost")
    assert "20 questions cannot tell 3 points" in found.limit_from
    assert found.limit_from.endswith("and 2 may be lost")


def test_gained_answers_make_up_for_lost_ones() -> None:
    assert judged("int4", 20, 4, gained=2).passed
    assert not judged("int4", 20, 5, gained=2).passed


@pytest.mark.parametrize("name", profile_names())
@pytest.mark.parametrize("kind", POINTS)
def test_more_questions_never_allow_fewer_answers_nor_a_small_file_more_than_a_big_one(
    name: str, kind
) -> None:
    (limit,) = (one for one in load_profile(name).limits if one.rung == "task")
    points = limit.value(kind, True)
    assert points is not None
    allowed = [allowed_answers(points, n) for n in range(1, 3 * RESOLVING)]
    assert allowed == sorted(allowed)
    assert max(allowed[: RESOLVING - 1]) <= allowed[RESOLVING - 1]
    plain = [math.floor(points * n / 100 + 1e-9) for n in range(1, 3 * RESOLVING)]
    assert all(one >= other for one, other in zip(allowed, plain, strict=True))
    assert allowed[RESOLVING - 1 :] == plain[RESOLVING - 1 :]


def test_half_the_answers_are_too_many_in_a_file_of_three_and_more() -> None:
    for kind in ("f16", "int8", "int4"):
        for questions in range(3, 120):
            assert not judged(kind, questions, math.ceil(questions / 2)).passed, questions
