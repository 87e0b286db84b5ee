"""How an answer is scored against the accepted ones: exact, as VQA does, or multiple choice."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from mllm_export.errors import CheckError

Metric = Literal["exact", "vqa", "choice"]
METRICS: tuple[Metric, ...] = ("exact", "vqa", "choice")

_AGREEING = 3
"""People who must have said the same for a full score. Source: VQA, arXiv 1505.00468, section 3."""

_PUNCTUATION = ';:/[]"()=+\\_><@`,?'
_NUMBERS = dict(
    zip(
        ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        ("0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
        strict=True,
    )
) | {"ten": "10"}
_ARTICLES = frozenset({"a", "an", "the"})
_THOUSANDS = re.compile(r"\d,\d")
_POINT = re.compile(r"\.(?!\d)")
_LETTER = re.compile(r"\(?([A-Za-z])\)?(?:[.:,)]|\s|$)")


def exact(answer: str, accepted: Sequence[str], choices: Sequence[str] = ()) -> float:  # noqa: ARG001
    """1 for an answer that is one of the accepted, blanks around it aside."""
    return float(answer.strip() in accepted)


def vqa(answer: str, accepted: Sequence[str], choices: Sequence[str] = ()) -> float:  # noqa: ARG001
    """VQA's soft accuracy: the mean over people left out of min(agreeing others / 3, 1).

    `accepted` holds one answer for each person asked, ten in VQA v2.
    Source: GT-Vision-Lab/VQA, vqaEvaluation/vqaEval.py. Both sides are normalised here, there the
    people's articles and numbers are in that form already.

    Raises: CheckError for the answers of fewer than four people, of whom none could score 1.
    """
    if len(accepted) <= _AGREEING:
        raise CheckError(
            f"the vqa metric needs the answers of more than {_AGREEING} people (VQA v2 has 10), "
            f"found {len(accepted)}; choose the metric exact"
        )
    said = [normalised(one) for one in accepted]
    own = normalised(answer)
    matching = said.count(own)
    scores = [min(1.0, (matching - (one == own)) / _AGREEING) for one in said]
    return sum(scores) / len(scores)


def normalised(answer: str) -> str:
    """Lower case, without punctuation and articles, numbers as digits.

    Apostrophes go on both sides, so that `dont` and `don't` meet without VQA's table of them.
    """
    text = " ".join(answer.split())
    joined = bool(_THOUSANDS.search(text))
    out = text
    for mark in _PUNCTUATION:
        apart = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if apart or joined else " ")
    out = _POINT.sub("", out).replace("'", "").replace("\u2019", "")
    words = (_NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(word for word in words if word not in _ARTICLES)


def choice(answer: str, accepted: Sequence[str], choices: Sequence[str] = ()) -> float:
    """1 when the letter or the text of an accepted choice was answered.

    Raises: CheckError for a question without choices.
    """
    if not choices:
        raise CheckError("the choice metric needs key 'choices', a list of strings")
    wanted = {_index(one, choices) for one in accepted}
    found = _index(answer, choices)
    return float(found is not None and found in wanted)


def _index(answer: str, choices: Sequence[str]) -> int | None:
    """Which choice an answer names: by its whole text, else by the letter it begins with."""
    text = normalised(answer)
    plain = [normalised(one) for one in choices]
    if text in plain:
        return plain.index(text)
    found = _LETTER.match(answer.strip())
    if found is None:
        return None
    at = ord(found[1].upper()) - ord("A")
    return at if at < len(choices) else None


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question with its lettered choices, as LLaVA's evaluation asks.

    Source: haotian-liu/LLaVA, llava/eval/model_vqa_science.py and docs/Evaluation.md.
    """
    if not choices:
        return question
    lines = [f"{chr(ord('A') + at)}. {one}" for at, one in enumerate(choices)]
    last = "Answer with the option's letter from the given choices directly."
    return "\n".join([question, *lines, last])


SCORES: dict[Metric, Callable[..., float]] = {"exact": exact, "vqa": vqa, "choice": choice}
