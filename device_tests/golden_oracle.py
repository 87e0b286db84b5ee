"""Expected values from a bundle's golden files."""

from __future__ import annotations

import json
from pathlib import Path

from mllm_export.device_tests.cases import (
    AnswerCase,
    LogitCase,
    PixelCase,
    PromptCase,
    TowerCase,
)
from mllm_export.device_tests.golden import (
    JSON,
    VALUES,
    Golden,
    GoldenSample,
    answer_tokens,
    load_values,
)
from mllm_export.device_tests.greedy import Greedy, draft_tokens
from mllm_export.device_tests.pictures import Picture, file_picture
from mllm_export.device_tests.samples import Question
from mllm_export.device_tests.subject import Subject
from mllm_export.errors import BundleError
from mllm_export.records import from_json


class GoldenOracle:
    """Expected values from a bundle's golden files."""

    def __init__(self, folder: Path) -> None:
        """Raises: BundleError when the folder has no golden files, or broken ones."""
        self._folder = folder
        file = folder / JSON
        if not file.is_file():
            raise BundleError(
                f"{folder} holds no golden files; check against the original with --against"
            )
        self._golden = from_json(Golden, file.read_bytes(), file, BundleError)
        self._values = load_values(folder / VALUES)
        self.title = f"golden files of the bundle, from: {self._golden.reference}"
        self.samples_title = f"{len(self._golden.samples)} golden samples"
        self.trained = self._golden.trained
        self.stop_ids = self._golden.stop_ids
        self.stop_strings = self._golden.stop_strings
        self.bos_id = self._golden.bos_id

    def _picture(self, sample: GoldenSample) -> Picture:
        return file_picture(sample.picture, self._folder / sample.picture)

    def pixel_cases(self) -> list[PixelCase]:
        """The golden pictures."""
        return [
            PixelCase(picture=self._picture(sample), expected=self._values[f"pixels-{at}"])
            for at, sample in enumerate(self._golden.samples)
        ]

    def prompt_cases(self) -> list[PromptCase]:
        """The golden prompts, and those of the samples."""
        return [
            PromptCase(question=one.question, images=one.images, expected=one.ids)
            for one in self._golden.prompts
        ] + [
            PromptCase(question=one.question, images=1, expected=one.ids)
            for one in self._golden.samples
        ]

    def tower_cases(self) -> list[TowerCase]:
        """The golden pixels."""
        return [
            TowerCase(
                name=sample.picture,
                picture=self._picture(sample),
                pixels=self._values[f"pixels-{at}"],
                expected=self._values[f"embeds-{at}"],
            )
            for at, sample in enumerate(self._golden.samples)
        ]

    def logit_cases(self, subject: Subject) -> list[LogitCase]:  # noqa: ARG002 - protocol
        """The last position of each golden prompt."""
        return [
            LogitCase(
                name=f"{sample.picture}: {sample.question}",
                pictures=(self._picture(sample),),
                embeds=(self._values[f"embeds-{at}"],),
                ids=sample.ids,
                next_ids=sample.answer_ids[:1],
                expected=self._values[f"logits-{at}"],
            )
            for at, sample in enumerate(self._golden.samples)
        ]

    def answer_cases(self, subject: Subject) -> list[AnswerCase]:
        """The golden answers, against what the export says now."""
        return [self._answer_case(subject, sample) for sample in self._golden.samples]

    def _answer_case(self, subject: Subject, sample: GoldenSample) -> AnswerCase:
        expected = answer_tokens(sample.answer_ids, sample.finished, self.stop_ids[0])
        embeds = [subject.embeds(self._picture(sample))]
        draft = subject.answer(sample.question, embeds, len(expected))
        tokens = draft_tokens(draft, self.stop_ids[0])
        agreed = next(
            (n for n, (a, b) in enumerate(zip(tokens, expected, strict=False)) if a != b),
            min(len(tokens), len(expected)),
        )
        same = agreed == len(expected)
        greedy = Greedy(
            ids=sample.answer_ids,
            finished=sample.finished,
            agreed=agreed,
            same=same,
            gap=0.0 if same else sample.margins[agreed],
        )
        question = Question(pictures=(sample.picture,), text=sample.question)
        return AnswerCase(question=question, draft=draft, greedy=greedy)

    def text(self, ids: tuple[int, ...]) -> str:
        """The recorded text of a golden answer; other answers by their ids."""
        known = {one.answer_ids: one.answer for one in self._golden.samples}
        return known.get(ids, json.dumps(list(ids)))
