"""An original that gives one known answer to everything, however large it says it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from parity_fakes import FakeSession, FakeStep, few_samples

from mllm_export.device_tests.reference import Floats, Forced, Reference
from mllm_export.device_tests.samples import Samples

LARGE = 1_400_000_000
"""Parameters of a decoder whose answers are not all gone on with."""


class Scripted:
    """The reference, but that each token of `answer` follows the one before, then the stop."""

    def __init__(self, reference: Reference, answer: str, parameters: int = LARGE) -> None:
        self._reference = reference
        self.answer = tuple(reference.text_ids(answer))
        assert len(set(self.answer)) == len(self.answer), "a token is known by the one before"
        self.parameters = parameters
        self._following = dict(zip(self.answer, (*self.answer[1:], *self.stop_ids), strict=True))
        self.asked: list[int] = []
        """Sequences of each pass."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._reference, name)

    def logits(self, sequences: Sequence[Forced], weights: object = None) -> list[Floats]:
        del weights
        self.asked.append(len(sequences))
        return [self._rows(one.ids[-one.rows :]) for one in sequences]

    def _rows(self, ids: Sequence[int]) -> Floats:
        rows = np.zeros((len(ids), 512), np.float32)
        for row, one in zip(rows, ids, strict=True):
            row[self._following.get(one, self.answer[0])] = 9
        return rows


class Saying(FakeSession):
    """An export that gives one answer to everything."""

    def __init__(self, reference: Reference, answer: str) -> None:
        super().__init__(reference)
        self.said = tuple(reference.text_ids(answer))

    def generate(self, prompt, images, *, max_tokens):
        del prompt, images
        tokens = (*self.said, self.reference.stop_ids[0])[:max_tokens]
        for count, one in enumerate(tokens, 1):
            ended = one in self.reference.stop_ids
            finish = "eos" if ended else "length" if count == max_tokens else ""
            yield FakeStep(one, finish, "" if ended else self.reference.text((one,)))


def knowing(answer: str, count: int = 3) -> Samples:
    """Questions of which every one has that known answer."""
    samples = few_samples(count)
    questions = tuple(replace(one, answers=(answer,)) for one in samples.questions)
    return replace(samples, questions=questions)
