"""Inputs with what the original makes of them; checks know nothing else of the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mllm_export.device_tests.greedy import Greedy
from mllm_export.device_tests.pictures import Picture
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.samples import Question
from mllm_export.device_tests.subject import Answer, Subject


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PixelCase:
    """A picture and its pixels f32[1, 3, S, S]."""

    picture: Picture
    expected: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCase:
    """A question and the ids of its whole prompt."""

    question: str
    images: int
    expected: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TowerCase:
    """Pixels f32[1, 3, S, S] and their embeddings f32[T, D]."""

    name: str
    picture: Picture | None
    """What the pixels were made of; None for pixels that no picture gives."""
    pixels: Floats
    expected: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogitCase:
    """A sequence with pictures in it, and the logits f32[rows, V] of its last positions."""

    name: str
    pictures: tuple[Picture, ...]
    embeds: tuple[Floats, ...]
    """The original's embeddings of the pictures."""
    ids: tuple[int, ...]
    next_ids: tuple[int, ...]
    """The token that follows each row in the text; empty where none is known."""
    expected: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCase:
    """A question, what the export answered, and what the original answers."""

    question: Question
    draft: Answer
    greedy: Greedy


class Oracle(Protocol):
    """Where the expected values come from: the original itself, or a bundle's golden files."""

    title: str
    samples_title: str
    trained: bool
    """Whether the questions have known answers, which random weights could not give."""
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    bos_id: int

    def pixel_cases(self) -> list[PixelCase]:
        """Pictures through the original's preprocessing."""

    def prompt_cases(self) -> list[PromptCase]:
        """Questions through the original's template and tokenizer."""

    def tower_cases(self) -> list[TowerCase]:
        """Pixels through the original's tower and projector."""

    def logit_cases(self, subject: Subject) -> list[LogitCase]:
        """Sequences through the original's decoder."""

    def answer_cases(self, subject: Subject) -> list[AnswerCase]:
        """Greedy answers of both."""

    def text(self, ids: tuple[int, ...]) -> str:
        """Answer ids as the original's tokenizer writes them."""
