"""What other weights cost the original's decoder: one number per question of what to store how."""

from __future__ import annotations

import numpy as np

from mllm_export.device_tests.decoder_calibration import answer_ids, picture_embeds
from mllm_export.device_tests.distributions import (
    Doubles,
    kl_divergence,
    log_softmax,
    next_token_nll,
    top1_agreement,
)
from mllm_export.device_tests.reference import Forced, Reader, Reference
from mllm_export.device_tests.samples import Samples
from mllm_export.device_tests.sequences import continuation_ids, spread
from mllm_export.records import record


@record
class Loss:
    """Of the original's own distributions, teacher-forced on image + text."""

    mean_kl: float
    """Nats."""
    p99_kl: float
    top1_agreement: float
    perplexity_ratio: float
    answers_kept: float
    """Share of questions whose known answer is still the likeliest token in every place."""
    answers_kept_of: int
    """Questions that the original answers rightly that way."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of `answers_kept`. Source: Wilson 1927, the score interval."""
        z, n, share = 1.96, max(self.answers_kept_of, 1), self.answers_kept
        middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
        return middle - half, middle + half


class DecoderLoss:
    """The original's distributions over some questions, kept; other weights held against them.

    The weights go through the original's own code: the engine's rounding is not part of it.
    """

    def __init__(self, reference: Reference, samples: Samples, count: int) -> None:
        """`count` questions spread over the samples; the original runs now."""
        self._reference = reference
        places = spread(len(samples.questions), count)
        embeds = picture_embeds(reference, samples)
        self._answers: list[int] = []
        self._next: list[tuple[int, ...]] = []
        self._sequences: list[Forced] = []
        for at in places:
            question = samples.questions[at]
            images = tuple(embeds[name] for name in question.pictures)
            ids = tuple(reference.prompt_ids(question.text, len(images)))
            answer = (*answer_ids(reference, question.answers[0]), reference.stop_ids[0])
            follow = answer + continuation_ids(reference, samples.questions, at)
            self._answers.append(len(answer))
            self._next.append(follow)
            self._sequences.append(Forced(ids=ids + follow[:-1], images=images, rows=len(follow)))
        rows = reference.logits(self._sequences)
        self._logs = [log_softmax(one) for one in rows]
        self._right = [self._is_right(at, one) for at, one in enumerate(self._logs)]

    @property
    def rows(self) -> int:
        """Positions that are compared."""
        return sum(len(one) for one in self._logs)

    def of(self, weights: Reader) -> Loss:
        """What the original loses with these weights, by published name."""
        made = [log_softmax(one) for one in self._reference.logits(self._sequences, weights)]
        pairs = list(zip(self._logs, made, strict=True))
        kl = np.concatenate([kl_divergence(a, b) for a, b in pairs])
        same = np.concatenate([top1_agreement(a, b) for a, b in pairs])
        lost = np.concatenate([self._lost(at, a, b) for at, (a, b) in enumerate(pairs)])
        kept = [self._is_right(at, b) for at, b in enumerate(made) if self._right[at]]
        return Loss(
            mean_kl=float(kl.mean()),
            p99_kl=float(np.quantile(kl, 0.99)),
            top1_agreement=float(same.mean()),
            perplexity_ratio=float(np.exp(lost.mean())),
            answers_kept=float(np.mean(kept)) if kept else 0.0,
            answers_kept_of=len(kept),
        )

    def _lost(self, at: int, reference: Doubles, export: Doubles) -> Doubles:
        following = np.asarray(self._next[at])
        return next_token_nll(export, following) - next_token_nll(reference, following)

    def _is_right(self, at: int, logs: Doubles) -> bool:
        count = self._answers[at]
        return bool((logs[:count].argmax(-1) == np.asarray(self._next[at][:count])).all())
