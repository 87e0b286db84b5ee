"""Accuracy on questions with known answers, original and export side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mllm_export.device_tests.accuracy import accuracy
from mllm_export.device_tests.cases import AnswerCase
from mllm_export.device_tests.check import NEEDS_ORIGINAL, Context
from mllm_export.device_tests.thumbnails import thumbnail
from mllm_export.report import Example, Rung, not_run, paired_values, rung_of

_SHOWN = 6


class Task:
    """An answer is right when it ended by itself and equals one of the known answers."""

    measures = ("accuracy lost", "accuracy of the export")

    def run(self, context: Context) -> Rung:
        """Count right answers; the interval is of the paired difference."""
        live = context.live
        if live is None:
            return not_run("task", NEEDS_ORIGINAL)
        if not live.samples.answered:
            return not_run(
                "task", "no questions with known answers; give an evaluation file (JSONL)"
            )
        cases = live.answer_cases(context.subject)
        original = np.array([_right(context, c, c.greedy.ids, c.greedy.finished) for c in cases])
        export = np.array([_right(context, c, c.draft.ids, c.draft.finished) for c in cases])
        return rung_of(
            "task",
            reference=live.title,
            samples=len(cases),
            measurements=accuracy(context.limits, original, export),
            examples=_lost(context, cases, original & ~export),
            paired=(
                paired_values(
                    "accuracy lost",
                    (f"{', '.join(c.question.pictures)}: {c.question.text}" for c in cases),
                    100 * (original.astype(float) - export),
                ),
            ),
        )


def _right(context: Context, case: AnswerCase, ids: tuple[int, ...], finished: bool) -> bool:
    return finished and context.oracle.text(ids).strip() in case.question.answers


def _lost(
    context: Context, cases: Sequence[AnswerCase], lost: Sequence[bool]
) -> tuple[Example, ...]:
    """Questions that only the original answers rightly."""
    live = context.live
    shown = [case for case, is_lost in zip(cases, lost, strict=True) if is_lost][:_SHOWN]
    return tuple(
        Example(
            name=case.question.text,
            reference=context.oracle.text(case.greedy.ids),
            export=context.oracle.text(case.draft.ids),
            note=f"right: {' or '.join(case.question.answers)}",
            image=thumbnail(live.samples.of(case.question)[0]) if live else "",
        )
        for case in shown
    )


CHECK = Task()
