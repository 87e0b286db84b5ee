"""Answer an evaluation file with a bundle, and with the original beside it; goes on if stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.bundle import MANIFEST, Bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.bootstrap import paired_interval
from mllm_export.device_tests.samples import Question, Samples, read_evaluation
from mllm_export.device_tests.scoring import METRICS, SCORES, Metric, with_choices
from mllm_export.device_tests.subject import Subject, open_subject
from mllm_export.errors import CheckError
from mllm_export.evaluation import Answered, Evaluation
from mllm_export.hashing import file_sha256
from mllm_export.progress import Progress, Step, silent
from mllm_export.records import as_plain, from_json

if TYPE_CHECKING:
    from mllm_export.device_tests.live import LiveOracle

_TOGETHER = 32
"""Questions between two writes of the answers."""


def evaluate(
    bundle: Bundle,
    file: Path,
    *,
    checkpoint: Checkpoint | None = None,
    metric: Metric = "exact",
    answers: Path | None = None,
    max_tokens: int = 32,
    progress: Progress = silent,
) -> Evaluation:
    """Score every question; `answers` keeps what was answered, and is gone on with.

    `max_tokens` is the length of the longest answer of both sides.

    Raises: CheckError for an evaluation file, or answers, that cannot be used.
    """
    samples = read_evaluation(file)
    _require(samples, metric, file)
    header = _header(bundle, file, checkpoint, max_tokens)
    done = [] if answers is None else _read_answers(answers, header, len(samples.questions))
    if len(done) < len(samples.questions):
        opened = open_subject(bundle)
        try:
            asking = _Asking(bundle, samples, checkpoint, opened, max_tokens, progress)
            for found in asking.answers(len(done)):
                done += found
                if answers is not None:
                    _append(answers, found)
        finally:
            opened.close()
    return _scored(samples, metric, done, file.name)


def _require(samples: Samples, metric: Metric, file: Path) -> None:
    """Every question is scored once with nothing, so that a bad line is known before the work."""
    if metric not in METRICS:
        raise CheckError(f"unknown metric '{metric}' (known: {', '.join(METRICS)})")
    for number, one in enumerate(samples.questions, 1):
        _try(one, metric, f"{file}, question {number}")


def _try(question: Question, metric: Metric, where: str) -> None:
    try:
        SCORES[metric]("", question.answers, question.choices)
    except CheckError as failure:
        raise CheckError(f"{where}: {failure}") from failure


def _header(
    bundle: Bundle, file: Path, checkpoint: Checkpoint | None, max_tokens: int
) -> dict[str, object]:
    """What the answers depend on; answers to anything else are not gone on with."""
    return {
        # 1 cut the answers of a run with the original, whatever max_tokens said.
        "schema": 2,
        "bundle": file_sha256(bundle.folder / MANIFEST),
        "evaluation": file_sha256(file),
        "against": checkpoint is not None,
        "max_tokens": max_tokens,
    }


def _read_answers(path: Path, header: dict[str, object], most: int) -> list[Answered]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return []
    text = path.read_text(encoding="utf-8")
    # A run that was killed while it wrote leaves half a line, which is asked again.
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    first, *rest = whole.splitlines() or [""]
    try:
        there = json.loads(first)
    except ValueError:
        there = None
    if there != header:
        raise CheckError(
            f"{path} holds answers of another bundle, evaluation file or setting; "
            "name another file, or remove it"
        )
    found = [
        from_json(Answered, line, f"{path}, line {number}", CheckError)
        for number, line in enumerate(rest, 2)
    ]
    return found[:most]


def _append(path: Path, found: Sequence[Answered]) -> None:
    lines = [json.dumps(as_plain(one), ensure_ascii=False) + "\n" for one in found]
    with path.open("a", encoding="utf-8") as opened:
        opened.writelines(lines)


class _Asking:
    """Both sides, some questions at a time."""

    def __init__(
        self,
        bundle: Bundle,
        samples: Samples,
        checkpoint: Checkpoint | None,
        subject: Subject,
        max_tokens: int,
        progress: Progress,
    ) -> None:
        self._bundle = bundle
        self._samples = samples
        self._subject = subject
        self._max_tokens = max_tokens
        self._progress = progress
        self._oracle = None if checkpoint is None else self._open(checkpoint)

    def _open(self, checkpoint: Checkpoint) -> LiveOracle:
        from mllm_export.device_tests.live import LiveOracle
        from mllm_export.device_tests.reference import REFERENCES

        manifest = self._bundle.manifest
        reference = REFERENCES[manifest.model.family](checkpoint)
        oracle = LiveOracle(
            reference, self._samples, manifest.context_tokens, silent, self._subject.rest
        )
        # Whole answers are scored, however much a check would ask of a model of that size.
        oracle.effort = replace(
            oracle.effort, answer_tokens=self._max_tokens, goes_on=True, sequences=0
        )
        return oracle

    def answers(self, start: int) -> Iterator[list[Answered]]:
        questions = self._samples.questions
        for at in range(start, len(questions), _TOGETHER):
            self._tell(at)
            yield self._some([_asked(one) for one in questions[at : at + _TOGETHER]])
        self._tell(len(questions))

    def _tell(self, done: int) -> None:
        total = len(self._samples.questions)
        self._progress(Step(stage="evaluate", item="", done=done, total=total, unit="questions"))

    def _some(self, questions: list[Question]) -> list[Answered]:
        if self._oracle is None:
            self._subject.prepare([p for one in questions for p in self._samples.of(one)])
            return [Answered(export=self._own(one)) for one in questions]
        oracle = self._oracle.asking(replace(self._samples, questions=tuple(questions)))
        return [
            Answered(export=oracle.text(one.draft.ids), original=oracle.text(one.greedy.ids))
            for one in oracle.answer_cases(self._subject)
        ]

    def _own(self, question: Question) -> str:
        pictures = self._samples.of(question)
        embeds = [self._subject.embeds(picture) for picture in pictures]
        steps = self._subject.session.generate(question.text, embeds, max_tokens=self._max_tokens)
        return "".join(step.text for step in steps)


def _asked(question: Question) -> Question:
    return replace(question, text=with_choices(question.text, question.choices))


def _scored(samples: Samples, metric: Metric, done: Sequence[Answered], source: str) -> Evaluation:
    questions = samples.questions
    score = SCORES[metric]
    export = np.array(
        [score(a.export, q.answers, q.choices) for a, q in zip(done, questions, strict=True)]
    )
    low, high = paired_interval(export)
    original = [
        score(a.original, q.answers, q.choices)
        for a, q in zip(done, questions, strict=True)
        if a.original is not None
    ]
    if len(original) != len(questions):
        return Evaluation(
            source=source,
            metric=metric,
            questions=len(questions),
            export=float(export.mean()),
            export_interval=(low, high),
        )
    theirs = np.array(original)
    gains = export - theirs
    return Evaluation(
        source=source,
        metric=metric,
        questions=len(questions),
        export=float(export.mean()),
        export_interval=(low, high),
        original=float(theirs.mean()),
        difference_interval=paired_interval(gains),
        only_original=int((gains < 0).sum()),
        only_export=int((gains > 0).sum()),
        p_value=mcnemar(int((gains < 0).sum()), int((gains > 0).sum())),
        same_answers=float(np.mean([a.export == a.original for a in done])),
    )


def mcnemar(lost: int, gained: int) -> float:
    """Chance of a split at least as uneven if losing and gaining were alike; two-sided, exact.

    For soft scores it counts questions that score less or more, which is the sign test.
    Source: McNemar 1947, Psychometrika 12; the exact binomial form.
    """
    changed = lost + gained
    tail = sum(math.comb(changed, k) for k in range(min(lost, gained) + 1))
    return float(min(1.0, 2 * tail / 2**changed))
