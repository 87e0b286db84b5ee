"""One run of the original over prompts, the export's answers and what may follow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mllm_export.device_tests.cases import AnswerCase, LogitCase
from mllm_export.device_tests.greedy import Asked, Greedy, compare, draft_tokens, finish
from mllm_export.device_tests.pictures import Picture
from mllm_export.device_tests.reference import Floats, Forced, Reference
from mllm_export.device_tests.samples import Question

CONTINUATION_TOKENS = 32
"""Of the further turn; they give each sequence enough rows for a share of agreement."""

GROUP = 64
"""Questions asked together: their embeddings and logits are held at once.

Of a large original each group reads all weights again, which costs hardly a hundredth of what
computing so many sequences does.
"""

GoesOn = Callable[[Question, tuple[int, ...]], bool]
"""Whether the original pays a pass for another token behind these of its answer."""

_PLAIN_ANSWER = "There are two circles and a square on a plain background."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """A question, its pictures, and the text that is put behind the prompt."""

    question: Question
    pictures: tuple[Picture, ...]
    asked: Asked
    continuation: tuple[int, ...]
    """Empty for a turn whose logits are not compared."""
    stop_id: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """The export's answer with its stop token."""
        return draft_tokens(self.asked.draft, self.stop_id)

    @property
    def forced(self) -> Forced:
        """A row for each token of answer and continuation: the choice made in its place."""
        follow = self.tokens + self.continuation
        return Forced(ids=self.asked.ids + follow[:-1], images=self.asked.images, rows=len(follow))

    def logit_case(self, rows: Floats) -> LogitCase:
        """The whole sequence with the original's logits."""
        return LogitCase(
            name=f"{', '.join(self.question.pictures) or 'no picture'}: {self.question.text}",
            pictures=self.pictures,
            embeds=self.asked.images,
            ids=self.forced.ids,
            next_ids=self.tokens + self.continuation,
            expected=rows,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What the run gave."""

    logits: list[LogitCase]
    answers: list[AnswerCase]


def run_turns(
    reference: Reference, turns: Sequence[Turn], answer_tokens: int, goes_on: GoesOn
) -> Passed:
    """The original's logits after every turn that has a continuation, and all its answers.

    `goes_on` is asked of the answers in which it left the export's.
    """
    logits: list[LogitCase] = []
    greedy: list[Greedy] = []
    for turn, rows in zip(turns, reference.logits([t.forced for t in turns]), strict=True):
        if turn.continuation:
            logits.append(turn.logit_case(rows))
        count = len(turn.tokens)
        greedy.append(compare(turn.asked.draft, rows[:count], reference.stop_ids))
    greedy = finish(
        reference,
        [turn.asked for turn in turns],
        greedy,
        answer_tokens,
        lambda at, ids: goes_on(turns[at].question, ids),
    )
    answers = [
        AnswerCase(question=turn.question, draft=turn.asked.draft, greedy=one)
        for turn, one in zip(turns, greedy, strict=True)
    ]
    return Passed(logits=logits, answers=answers)


def continuation_ids(
    reference: Reference, questions: Sequence[Question], at: int
) -> tuple[int, ...]:
    """A further turn of the conversation, with the next question of the list."""
    following = questions[(at + 1) % len(questions)]
    answer = following.answers[0] if following.answers else _PLAIN_ANSWER
    text = f"USER: {following.text} ASSISTANT: {answer}"
    ids = (*reference.text_ids(text), reference.stop_ids[0], *reference.text_ids(_PLAIN_ANSWER))
    return tuple(ids[:CONTINUATION_TOKENS])


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` places spread evenly over `count`."""
    few = min(count, wanted)
    return [at * count // few for at in range(few)]
