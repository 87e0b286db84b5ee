"""The reference's greedy answers in few forward passes: the export's answer is the draft.

One pass over prompt and draft gives the reference's own choice after every token of it. Up to
the first difference that is its greedy answer; from there on it continues by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mllm_export.device_tests.distributions import log_softmax
from mllm_export.device_tests.reference import Floats, Forced
from mllm_export.device_tests.subject import Answer


class Forcing(Protocol):
    """What gives logits of sequences: a reference, or one with exported parts in it."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    def logits(self, sequences: Sequence[Forced]) -> list[Floats]:
        """Shapes: f32[rows, V] for each sequence."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """A prompt as both sides see it, and the export's answer."""

    ids: tuple[int, ...]
    images: tuple[Floats, ...]
    draft: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """The reference's greedy answer, held against the draft."""

    ids: tuple[int, ...]
    """Without the stop token."""
    finished: bool
    """False: cut, at the number of tokens asked for or where the rest changes no verdict."""
    agreed: int
    """Tokens of the draft that the reference chose too."""
    same: bool
    """Whether the whole draft is the reference's answer."""
    gap: float
    """How much likelier, in nats, the reference finds its own first other token; 0 if the same."""


def draft_tokens(draft: Answer, stop_id: int) -> tuple[int, ...]:
    """All tokens the export chose, the stop token included."""
    return (*draft.ids, stop_id) if draft.finished else draft.ids


def forced(asked: Asked, tokens: Sequence[int]) -> Forced:
    """Prompt and tokens given whole: one row for each token, the choice made in its place."""
    return Forced(ids=(*asked.ids, *tokens[:-1]), images=asked.images, rows=max(len(tokens), 1))


def compare(draft: Answer, rows: Floats, stop_ids: Sequence[int]) -> Greedy:
    """Hold the export's choices against the reference's logits in their places.

    Shapes: f32[tokens, V], a row for each token of `draft_tokens`.
    """
    tokens = draft_tokens(draft, stop_ids[0])
    choices = rows.argmax(axis=-1)
    differing = np.flatnonzero(choices != np.asarray(tokens))
    if not differing.size:
        return Greedy(
            ids=draft.ids, finished=draft.finished, agreed=len(tokens), same=True, gap=0.0
        )
    at = int(differing[0])
    logs = log_softmax(rows[at : at + 1])[0]
    chosen = int(choices[at])
    ended = chosen in stop_ids
    return Greedy(
        ids=draft.ids[:at] + (() if ended else (chosen,)),
        finished=ended,
        agreed=at,
        same=False,
        gap=float(logs[chosen] - logs[tokens[at]]),
    )


def finish(
    reference: Forcing,
    asked: Sequence[Asked],
    found: Sequence[Greedy],
    max_tokens: int,
    goes_on: Callable[[int, tuple[int, ...]], bool] = lambda _at, _ids: True,
) -> list[Greedy]:
    """Let the reference go on by itself where it left the draft; a token a pass.

    `goes_on` takes an answer's place and its ids so far, and says whether the next is worth it.
    """
    done = list(found)
    while True:
        open_ones = [
            at
            for at, one in enumerate(done)
            if not (one.finished or one.same or len(one.ids) >= max_tokens) and goes_on(at, one.ids)
        ]
        if not open_ones:
            return done
        sequences = [
            Forced(ids=(*asked[at].ids, *done[at].ids), images=asked[at].images, rows=1)
            for at in open_ones
        ]
        for at, rows in zip(open_ones, reference.logits(sequences), strict=True):
            chosen = int(rows[-1].argmax())
            ended = chosen in reference.stop_ids
            ids = done[at].ids if ended else (*done[at].ids, chosen)
            done[at] = replace(done[at], ids=ids, finished=ended)
