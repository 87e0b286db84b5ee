"""Greedy answers, token by token."""

from __future__ import annotations

import numpy as np

from mllm_export.device_tests.cases import AnswerCase
from mllm_export.device_tests.check import Context
from mllm_export.device_tests.thumbnails import thumbnail
from mllm_export.report import Example, Rung, rung_of

_SHOWN = 4


class Text:
    """How many answers are the same, and how near a tie the first other token was."""

    measures = (
        "exact answers",
        "largest gap at the first differing token",
        "median gap at the first differing token",
        "answers whose text is not that of their ids",
    )

    def run(self, context: Context) -> Rung:
        """Compare every answer."""
        cases = context.oracle.answer_cases(context.subject)
        other = [case for case in cases if not case.greedy.same]
        gaps = [case.greedy.gap for case in other] or [0.0]
        measure = context.limits.measure
        measurements = [
            measure("text", "exact answers", 1 - len(other) / len(cases)),
            measure("text", "largest gap at the first differing token", max(gaps), "nats"),
            measure(
                "text", "median gap at the first differing token", float(np.median(gaps)), "nats"
            ),
        ]
        if context.live is not None:
            misspelt = [case for case in cases if _misspelt(context, case)]
            measurements.append(
                measure("text", "answers whose text is not that of their ids", len(misspelt))
            )
        if other:
            places = [case.greedy.agreed for case in other]
            measurements.append(
                measure(
                    "text", "median place of the first differing token", float(np.median(places))
                )
            )
        other.sort(key=lambda case: -case.greedy.gap)
        return rung_of(
            "text",
            reference=context.oracle.title,
            samples=len(cases),
            measurements=tuple(measurements),
            examples=tuple(_shown(context, case) for case in other[:_SHOWN]),
        )


def _misspelt(context: Context, case: AnswerCase) -> bool:
    """Whether the text streamed to the user is not what the original's tokenizer writes.

    Only of answers that ended by themselves: a cut one may end within a character.
    """
    draft = case.draft
    return draft.finished and draft.text.strip() != context.oracle.text(draft.ids).strip()


def _shown(context: Context, case: AnswerCase) -> Example:
    text = context.oracle.text
    more = "" if case.greedy.finished else " ..."
    pictures = context.live.samples.of(case.question) if context.live else ()
    return Example(
        name=case.question.text,
        reference=text(case.greedy.ids) + more,
        export=text(case.draft.ids) + ("" if case.draft.finished else " ..."),
        note=f"differs at token {case.greedy.agreed}, by {case.greedy.gap:.3g} nats",
        image=thumbnail(pictures[0]) if pictures else "",
    )


CHECK = Text()
