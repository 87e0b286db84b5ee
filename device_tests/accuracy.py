"""Accuracy of both sides on the same questions, held to what so many questions can tell."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mllm_export.device_tests.bootstrap import paired_interval
from mllm_export.device_tests.profile import Limits
from mllm_export.report import Measurement

RESOLVING = 200
"""Questions from which a limit is held as it stands: the least, half a point, is one answer."""

_CHANCE = 0.05
"""Of a model that loses just what the limit allows: how often it may be called worse."""


def accuracy(
    limits: Limits, original: npt.NDArray[np.bool_], export: npt.NDArray[np.bool_]
) -> tuple[Measurement, ...]:
    """Right answers of both, what was lost, and the interval of the paired difference.

    Shapes: bool[questions], right or wrong.
    """
    questions = len(original)
    low, high = paired_interval(export.astype(float) - original)
    right, kept = int(original.sum()), int(export.sum())
    lost = limits.measure("task", "accuracy lost", 100 * (right - kept) / questions, "points")
    return (
        limits.measure("task", "accuracy of the original", 100 * right / questions, "%"),
        limits.measure("task", "accuracy of the export", 100 * kept / questions, "%"),
        widened(lost, questions),
        limits.measure("task", "difference, lower end of 95 %", 100 * low, "points"),
        limits.measure("task", "difference, upper end of 95 %", 100 * high, "points"),
    )


def widened(lost: Measurement, questions: int) -> Measurement:
    """With the limit as answers that may be lost, where there are too few questions for it.

    One answer of 20 is 5 points, and a model within 3 points loses one in half of such files.
    """
    if lost.limit is None or questions >= RESOLVING:
        return lost
    allowed = allowed_answers(lost.limit, questions)
    if allowed <= lost.limit * questions / 100:
        return lost
    return replace(
        lost,
        limit=100 * allowed / questions,
        limit_from=(
            f"{lost.limit_from}; {questions} questions cannot tell {lost.limit:g} points: a model "
            f"that loses just as much loses up to {allowed} of so many answers by chance, "
            f"and {allowed} may be lost"
        ),
    )


def allowed_answers(limit: float, questions: int) -> int:
    """How many answers may be lost, of so many questions, at a limit in points.

    What the limit itself allows; with few questions as many as chance takes from a model that
    loses just that, at most the answers that `RESOLVING` questions may lose.
    """
    plain = _whole(limit * questions / 100)
    if questions >= RESOLVING:
        return plain
    by_chance = next(
        lost for lost in range(questions + 1) if _more_than(lost, questions, limit) <= _CHANCE
    )
    return max(plain, min(by_chance, _whole(limit * RESOLVING / 100)))


def _more_than(lost: int, questions: int, limit: float) -> float:
    """How likely more than `lost` answers go, when each goes with the limit's own chance."""
    share = min(1.0, limit / 100)
    upto = sum(
        math.comb(questions, one) * share**one * (1 - share) ** (questions - one)
        for one in range(lost + 1)
    )
    return max(0.0, 1 - upto)


def _whole(answers: float) -> int:
    """Rounded down; a product that is a whole number but for its last bit is that number."""
    return math.floor(answers + 1e-9)
