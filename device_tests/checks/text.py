"""Greedy answers, token by token."""

from __future__ import annotations

import numpy as np

from mllm_export.device_tests.cases import AnswerCase
from mllm_export.device_tests.check import Context
from mllm_export.device_tests.subject import UNFINISHED
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
        "answers that go on behind a stop token",
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
        stops = set(context.oracle.stop_ids)
        endless = sum(not stops.isdisjoint(case.draft.ids) for case in cases)
        measurements.append(measure("text", "answers that go on behind a stop token", endless))
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

    Of a cut answer the beginning: it may end before a stop string, or within a character.
    """
    draft = case.draft
    shown, expected = draft.text.strip(), context.oracle.text(draft.ids).strip()
    if draft.finished:
        return expected != shown
    return not expected.startswith(shown.rstrip(UNFINISHED))


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
