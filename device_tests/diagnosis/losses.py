"""What a choice of exported parts loses: distance of distributions, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mllm_export.device_tests.diagnosis.mixture import Case, Mixture, Parts
from mllm_export.device_tests.distributions import Doubles, kl_divergence, log_softmax
from mllm_export.device_tests.greedy import Asked, Greedy, compare, finish
from mllm_export.device_tests.reference import Floats, Forced, Reference
from mllm_export.device_tests.subject import Answer

_SPARE_TOKENS = 2
"""An answer that is longer than every known one by more than this is wrong anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Against the original on the same cases."""

    kl: float
    """Mean over rows, in nats."""
    points: float
    """Of accuracy lost; of equal answers, where none are known to be right."""


class Judge:
    """Holds rows of logits against the original's."""

    def __init__(
        self, reference: Reference, cases: Sequence[Case], rows: Sequence[Floats], trained: bool
    ) -> None:
        """`rows` are the original's, one array for each case."""
        self._reference = reference
        self._cases = cases
        self._logs: list[Doubles] = [log_softmax(one) for one in rows]
        self._trained = trained
        self._stop = reference.stop_ids
        self._own = [self._is_right(case, case.answer) for case in cases]
        self._limit = _SPARE_TOKENS + max(
            [len(case.answer.ids) for case in cases]
            + [len(reference.text_ids(a)) for case in cases for a in case.question.answers]
        )

    @property
    def rows(self) -> int:
        """Positions that are compared."""
        return sum(len(one) for one in self._logs)

    def accuracy(self) -> float:
        """Of the original, as a share."""
        return float(np.mean(self._own))

    def kl(self, rows: Sequence[Floats]) -> float:
        """Mean KL divergence from the original, in nats."""
        found = [
            kl_divergence(logs, log_softmax(np.nan_to_num(one)))
            for logs, one in zip(self._logs, rows, strict=True)
        ]
        return float(np.concatenate(found).mean())

    def loss(self, mixture: Mixture, parts: Parts, rows: Sequence[Floats]) -> Loss:
        """What these rows lose; answers that leave the original's go on by themselves."""
        asked = [self._asked(mixture, case, parts) for case in self._cases]
        found = [
            compare(one.draft, made[: len(case.tokens(self._stop[0]))], self._stop)
            for one, case, made in zip(asked, self._cases, rows, strict=True)
        ]
        if self._trained:
            found = finish(_Decoding(mixture, parts), asked, found, self._limit)
        return Loss(kl=self.kl(rows), points=self.points(found))

    def _asked(self, mixture: Mixture, case: Case, parts: Parts) -> Asked:
        draft = Answer(ids=case.answer.ids, finished=case.answer.finished)
        whole = mixture.forced(case, parts)
        prompt = whole.ids[: len(whole.ids) - len(case.follow) + 1]
        return Asked(ids=prompt, images=whole.images, draft=draft)

    def points(self, answers: Sequence[Greedy]) -> float:
        """Points lost by these answers, one for each case."""
        right = [self._is_right(c, one) for c, one in zip(self._cases, answers, strict=True)]
        return 100 * (float(np.mean(self._own)) - float(np.mean(right)))

    def points_of(self, drafts: Sequence[Answer]) -> float:
        """Points lost by answers that were generated."""
        made = [
            Greedy(
                ids=one.ids,
                finished=one.finished,
                agreed=0,
                same=one.ids == case.answer.ids and one.finished == case.answer.finished,
                gap=0.0,
            )
            for one, case in zip(drafts, self._cases, strict=True)
        ]
        return self.points(made)

    def _is_right(self, case: Case, answer: Greedy) -> bool:
        if not self._trained:
            return answer.same or answer is case.answer
        text = self._reference.text(answer.ids).strip()
        return answer.finished and text in case.question.answers


class _Decoding:
    """A mixture with its parts chosen, as `finish` asks it."""

    def __init__(self, mixture: Mixture, parts: Parts) -> None:
        self.stop_ids = mixture.stop_ids
        self._mixture = mixture
        self._parts = parts

    def logits(self, sequences: Sequence[Forced]) -> list[Floats]:
        return self._mixture.logits(sequences, self._parts)
