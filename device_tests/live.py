"""Expected values from the original itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mllm_export.device_tests.cases import (
    AnswerCase,
    LogitCase,
    PixelCase,
    PromptCase,
    TowerCase,
)
from mllm_export.device_tests.diagnosis.walked import Walked
from mllm_export.device_tests.distributions import relative_error
from mllm_export.device_tests.greedy import Asked
from mllm_export.device_tests.kept_embeds import KeptEmbeds
from mllm_export.device_tests.pictures import Picture, ladder
from mllm_export.device_tests.probes import original_ranges
from mllm_export.device_tests.questions import NASTY, PLAIN, WITH_MARKERS, WITH_SPECIAL
from mllm_export.device_tests.reference import Floats, Reference
from mllm_export.device_tests.samples import Question, Samples
from mllm_export.device_tests.sequences import (
    CONTINUATION_TOKENS,
    GROUP,
    Passed,
    Turn,
    continuation_ids,
    run_turns,
    spread,
)
from mllm_export.device_tests.subject import UNFINISHED, Answer, Subject
from mllm_export.progress import Progress, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured; a large model pays minutes for what costs a small one a second."""

    towers: int
    sequences: int
    """Samples whose logits are compared, with two more; at 0 none are."""
    controls: int
    answer_tokens: int
    measures_floor: bool
    """Whether the tower runs in float64 too, which takes twice its memory again."""
    goes_on: bool
    """Whether the original finishes every answer in which it left the export's.

    One that can still turn out to be a known answer is finished whatever this says.
    """


_EFFORTS = (
    (
        20_000_000,
        Effort(
            towers=16,
            sequences=48,
            controls=24,
            answer_tokens=24,
            measures_floor=True,
            goes_on=True,
        ),
    ),
    (
        300_000_000,
        Effort(
            towers=6, sequences=12, controls=8, answer_tokens=24, measures_floor=False, goes_on=True
        ),
    ),
    (
        None,
        Effort(
            towers=3, sequences=3, controls=3, answer_tokens=12, measures_floor=False, goes_on=False
        ),
    ),
)
"""By parameters of the decoder's layers: a thousand tokens through 1.4 billion of them take a
minute on two cores."""


_BATCH = 64
"""Pictures that go through the original's tower together: their pixels and states are held at
once, and a tower that is read anew for each batch still computes for minutes."""


def effort_for(parameters: int) -> Effort:
    """What a decoder of that size is worth measuring."""
    return next(e for limit, e in _EFFORTS if limit is None or parameters < limit)


class LiveOracle:
    """The reference, asked once for what several checks need."""

    def __init__(
        self,
        reference: Reference,
        samples: Samples,
        context_tokens: int,
        progress: Progress,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing runs before it is asked for; `rest` makes room before the original works."""
        self._rest = rest
        self.reference = reference
        self.samples = samples
        self.effort = effort_for(reference.parameters)
        self.title = reference.title
        self.samples_title = f"{samples.source}, {len(samples.questions)} questions"
        self.trained = samples.answered
        self.stop_ids = reference.stop_ids
        self.stop_strings = reference.stop_strings
        self.bos_id = reference.bos_id
        self._context_tokens = context_tokens
        self._progress = progress
        self._embeds = KeptEmbeds()
        self._tower_floor: float | None = None
        self._probes: tuple[list[Floats], dict[str, float]] | None = None
        self._asked: Subject | None = None
        self._passed: Passed | None = None

    def asking(self, samples: Samples) -> LiveOracle:
        """The same original, asked other samples with the same effort."""
        parts = (self.reference, samples, self._context_tokens, self._progress, self._rest)
        asked = LiveOracle(*parts)
        asked.effort = self.effort
        return asked

    def text(self, ids: tuple[int, ...]) -> str:
        """Answer ids as the original's tokenizer writes them."""
        return self.reference.text(ids)

    def pixel_cases(self) -> list[PixelCase]:
        """The ladder, and some of the samples' own pictures."""
        return [
            PixelCase(picture=picture, expected=self.pixels(picture))
            for picture in (*ladder(), *self._some_pictures())
        ]

    def pixels(self, picture: Picture) -> Floats:
        """A picture through the original's preprocessing."""
        with picture.open() as image:
            return self.reference.pixels(image)

    def _some_pictures(self) -> list[Picture]:
        return list(self.samples.pictures.values())[: self.effort.towers]

    def prompt_cases(self) -> list[PromptCase]:
        """Plain and nasty questions, with no, one and two pictures."""
        asked = [(text, 1) for text in (*NASTY, *WITH_SPECIAL)]
        asked += [(text, count) for text in PLAIN for count in (0, 1, 2)]
        asked += list(WITH_MARKERS)
        asked += [(question.text, 1) for question in self.samples.questions]
        return [
            PromptCase(question=text, images=count, expected=self._prompt(text, count))
            for text, count in dict.fromkeys(asked)
        ]

    def _prompt(self, question: str, images: int) -> tuple[int, ...]:
        return tuple(self.reference.prompt_ids(question, images))

    def tower_cases(self) -> list[TowerCase]:
        """Samples' pictures, and two that no camera makes: one colour, and noise."""
        pictures = self._some_pictures()
        pixels = {picture.name: self.pixels(picture) for picture in pictures}
        noise = np.random.default_rng(11).standard_normal(next(iter(pixels.values())).shape)
        made = {"one colour": np.full(noise.shape, 0.25), "noise": noise}
        made_pixels = {name: values.astype(np.float32) for name, values in made.items()}
        embeds = (
            *self.embeds(pictures),
            *self.reference.embed(np.concatenate(list(made_pixels.values()))),
        )
        return [
            TowerCase(
                name=name,
                picture=self.samples.pictures.get(name),
                pixels=values,
                expected=expected,
            )
            for (name, values), expected in zip(
                {**pixels, **made_pixels}.items(), embeds, strict=True
            )
        ]

    def embeds(self, pictures: Sequence[Picture]) -> list[Floats]:
        """The original's embeddings f32[T, D] of each picture, kept once computed."""
        fresh = list({p.name: p for p in pictures if p.name not in self._embeds}.values())
        for start in range(0, len(fresh), _BATCH):
            self._tell("tower of the original", start, len(fresh), "pictures")
            self._rest()
            batch = fresh[start : start + _BATCH]
            made = self.reference.embed(np.concatenate([self.pixels(one) for one in batch]))
            for one, embeds in zip(batch, made, strict=True):
                self._embeds.put(one.name, embeds)
        return [self._embeds[picture.name] for picture in pictures]

    def tower_floor(self) -> float | None:
        """Relative error of the original's embeddings in float32, against float64.

        None where that would cost too much memory. Source: measured on two pictures and noise.
        """
        if self._tower_floor is None and self.effort.measures_floor:
            cases = self.tower_cases()
            few = [*cases[:2], cases[-1]]
            pixels = np.concatenate([case.pixels for case in few])
            exact = self.reference.at("float64").embed(pixels)
            pairs = zip(exact, few, strict=True)
            self._tower_floor = max(relative_error(one, case.expected) for one, case in pairs)
        return self._tower_floor

    def tower_probes(self) -> tuple[list[Floats], dict[str, float]]:
        """A few tiles f32[1, 3, S, S], and the largest magnitude that enters each layer on them.

        Empty for a reference that reads its weights anew for every pass.
        """
        if self._probes is None:
            cases = self.tower_cases()
            tiles = [case.pixels[:1] for case in (*cases[:2], *cases[-2:])]
            ranges = (
                original_ranges(Walked(self.reference), tiles) if self.reference.resident else {}
            )
            self._probes = tiles, ranges
        return self._probes

    def logit_cases(self, subject: Subject) -> list[LogitCase]:
        """Prompt, answer and a further turn, teacher-forced."""
        return self._run(subject).logits

    def answer_cases(self, subject: Subject) -> list[AnswerCase]:
        """Every question of the samples."""
        return self._run(subject).answers

    def _run(self, subject: Subject) -> Passed:
        if self._passed is None or self._asked is not subject:
            count = len(self.samples.questions)
            groups = [self._group(subject, start) for start in range(0, count, GROUP)]
            self._asked = subject
            self._passed = Passed(
                logits=[case for group in groups for case in group.logits],
                # Behind the questions stand further turns, asked for their logits alone.
                answers=[case for group in groups for case in group.answers][:count],
            )
        return self._passed

    def _group(self, subject: Subject, start: int) -> Passed:
        """The questions from there on; their pictures are let go when the next group needs room."""
        self._embeds.trim()
        turns = self._turns(subject, start)
        self._rest()
        total = len(self.samples.questions)
        self._tell("decoder of the original", start, total, "sequences")
        return run_turns(self.reference, turns, self.effort.answer_tokens, self._goes_on)

    def _goes_on(self, question: Question, ids: tuple[int, ...]) -> bool:
        """Cut short, an original's right answer would count as wrong, and no export could lose it.

        One that already says something else than every known answer is wrong however it ends.
        """
        if self.effort.goes_on:
            return True
        # The last character may not be whole yet, and blanks may still move as text is joined.
        said = _bare(self.text(ids).rstrip(UNFINISHED))
        return any(_bare(answer).startswith(said) for answer in question.answers)

    def _turns(self, subject: Subject, start: int) -> list[Turn]:
        """A turn for each question of a group; behind the last some more."""
        questions = self.samples.questions
        group = range(start, min(start + GROUP, len(questions)))
        pictures = [picture for at in group for picture in self.samples.of(questions[at])]
        self.embeds(pictures)
        subject.prepare(pictures)
        measured = set(spread(len(questions), self.effort.sequences))
        turns = [self._turn(subject, at, questions[at], at in measured) for at in group]
        is_last = group.stop == len(questions)
        return turns + self._further(subject) if measured and is_last else turns

    def _further(self, subject: Subject) -> list[Turn]:
        """One without a picture and one with two."""
        names = tuple(self.samples.pictures)[:2]
        text = self.samples.questions[0].text
        several = (Question(pictures=(), text=text), Question(pictures=names, text=text))
        return [
            self._turn(subject, 0, question, True) for question in several if self._fits(question)
        ]

    def _fits(self, question: Question) -> bool:
        embeds = self.embeds(self.samples.of(question))
        positions = len(self._prompt(question.text, len(embeds))) + sum(len(e) for e in embeds)
        spare = self.effort.answer_tokens + CONTINUATION_TOKENS
        return positions + spare <= self._context_tokens

    def _turn(self, subject: Subject, at: int, question: Question, measured: bool) -> Turn:
        pictures = self.samples.of(question)
        draft = self._answer(subject, question)
        asked = Asked(
            ids=self._prompt(question.text, len(pictures)),
            images=tuple(self.embeds(pictures)),
            draft=draft,
        )
        more = continuation_ids(self.reference, self.samples.questions, at) if measured else ()
        return Turn(
            question=question,
            pictures=pictures,
            asked=asked,
            continuation=more,
            stop_id=self.stop_ids[0],
        )

    def _answer(self, subject: Subject, question: Question) -> Answer:
        embeds = [subject.embeds(picture) for picture in self.samples.of(question)]
        return subject.answer(question.text, embeds, self.effort.answer_tokens)

    def _tell(self, what: str, done: int, total: int, unit: str) -> None:
        self._progress(Step(stage="check", item=what, done=done, total=total, unit=unit))


def _bare(text: str) -> str:
    return "".join(text.split())
