"""Golden inputs and outputs inside a bundle: what a check needs where the original is not."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.device_tests.cases import (
    AnswerCase,
    LogitCase,
    PixelCase,
    PromptCase,
    TowerCase,
)
from mllm_export.device_tests.distributions import log_softmax
from mllm_export.device_tests.greedy import Greedy, draft_tokens
from mllm_export.device_tests.pictures import Picture, file_picture
from mllm_export.device_tests.questions import NASTY, WITH_MARKERS, WITH_SPECIAL
from mllm_export.device_tests.reference import Floats, Forced
from mllm_export.device_tests.samples import Question
from mllm_export.device_tests.subject import Answer, Subject
from mllm_export.errors import BundleError
from mllm_export.records import from_json, record, to_json

if TYPE_CHECKING:
    from mllm_export.device_tests.live import LiveOracle

_JSON, _VALUES = "golden.json", "values.npz"
_SAMPLES = 3
_SCHEMA = 1
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold: the same values give the same bytes."""


@record
class GoldenPrompt:
    """A question and the ids of its whole prompt."""

    question: str
    images: int
    ids: tuple[int, ...]


@record
class GoldenSample:
    """A picture, a question and the original's greedy answer."""

    picture: str
    """File beside golden.json; its pixels, embeddings and logits stand in values.npz."""
    question: str
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str
    finished: bool
    margins: tuple[float, ...]
    """Nats by which the original prefers each token of the answer to any other."""


@record
class Golden:
    """golden.json."""

    schema: int = _SCHEMA
    reference: str
    trained: bool
    """Whether the questions came with known answers."""
    bos_id: int
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    prompts: tuple[GoldenPrompt, ...]
    samples: tuple[GoldenSample, ...]


def write_golden(folder: Path, oracle: LiveOracle, subject: Subject) -> None:
    """Record a few samples of the original in a new folder."""
    folder.mkdir()
    chosen = _chosen(oracle, subject)
    subject.rest()
    values: dict[str, Floats] = {}
    samples: list[GoldenSample] = []
    forced = [_forced(oracle, case) for case in chosen]
    for at, (case, rows) in enumerate(
        zip(chosen, oracle.reference.logits([f for _, f in forced]), strict=True)
    ):
        (picture,) = oracle.samples.of(case.question)
        file = f"picture-{at}.png"
        with picture.open() as image:
            image.convert("RGB").save(folder / file, "PNG")
        values[f"pixels-{at}"] = oracle.pixels(picture)
        values[f"embeds-{at}"] = oracle.embeds([picture])[0]
        values[f"logits-{at}"] = rows[:1]
        samples.append(_sample(oracle, case, file, forced[at][0], rows))
    prompts = (*((q, 1) for q in (*NASTY, *WITH_SPECIAL)), *WITH_MARKERS)
    golden = Golden(
        reference=oracle.title,
        trained=oracle.trained,
        bos_id=oracle.bos_id,
        stop_ids=oracle.stop_ids,
        stop_strings=oracle.stop_strings,
        prompts=tuple(
            GoldenPrompt(question=text, images=n, ids=tuple(oracle.reference.prompt_ids(text, n)))
            for text, n in prompts
        ),
        samples=tuple(samples),
    )
    (folder / _JSON).write_text(to_json(golden), encoding="utf-8")
    _save(folder / _VALUES, values)


def _chosen(oracle: LiveOracle, subject: Subject) -> list[AnswerCase]:
    """The first questions about one picture each, no picture twice."""
    found: dict[str, AnswerCase] = {}
    for case in oracle.answer_cases(subject):
        if len(case.question.pictures) == 1:
            found.setdefault(case.question.pictures[0], case)
    return list(found.values())[:_SAMPLES]


def _forced(oracle: LiveOracle, case: AnswerCase) -> tuple[tuple[int, ...], Forced]:
    (picture,) = oracle.samples.of(case.question)
    prompt = tuple(oracle.reference.prompt_ids(case.question.text, 1))
    tokens = _answer_tokens(case.greedy.ids, case.greedy.finished, oracle.stop_ids[0])
    images = tuple(oracle.embeds([picture]))
    return prompt, Forced(ids=(*prompt, *tokens[:-1]), images=images, rows=max(1, len(tokens)))


def _answer_tokens(ids: tuple[int, ...], finished: bool, stop_id: int) -> tuple[int, ...]:
    return draft_tokens(Answer(ids=ids, finished=finished), stop_id)


def _sample(
    oracle: LiveOracle, case: AnswerCase, file: str, prompt: tuple[int, ...], rows: Floats
) -> GoldenSample:
    ordered = np.sort(log_softmax(rows), axis=-1)
    return GoldenSample(
        picture=file,
        question=case.question.text,
        ids=prompt,
        answer_ids=case.greedy.ids,
        answer=oracle.text(case.greedy.ids),
        finished=case.greedy.finished,
        margins=tuple(float(x) for x in (ordered[:, -1] - ordered[:, -2]).round(6)),
    )


def _save(path: Path, arrays: dict[str, Floats]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in sorted(arrays.items()):
            data = io.BytesIO()
            np.save(data, np.ascontiguousarray(values, np.float32), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data.getvalue())


class GoldenOracle:
    """Expected values from a bundle's golden files."""

    def __init__(self, folder: Path) -> None:
        """Raises: BundleError when the folder has no golden files, or broken ones."""
        self._folder = folder
        file = folder / _JSON
        if not file.is_file():
            raise BundleError(
                f"{folder} holds no golden files; check against the original with --against"
            )
        self._golden = from_json(Golden, file.read_bytes(), file, BundleError)
        self._values = self._load(folder / _VALUES)
        self.title = f"golden files of the bundle, from: {self._golden.reference}"
        self.samples_title = f"{len(self._golden.samples)} golden samples"
        self.trained = self._golden.trained
        self.stop_ids = self._golden.stop_ids
        self.stop_strings = self._golden.stop_strings
        self.bos_id = self._golden.bos_id

    def _load(self, path: Path) -> dict[str, Floats]:
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, zipfile.BadZipFile) as failure:
            raise BundleError(f"{path}: cannot be read ({failure})") from failure

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
        expected = _answer_tokens(sample.answer_ids, sample.finished, self.stop_ids[0])
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
