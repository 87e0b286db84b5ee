"""The decoder on image and text, teacher-forced, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mllm_export.device_tests.cases import LogitCase
from mllm_export.device_tests.check import Context
from mllm_export.device_tests.distributions import (
    Doubles,
    kl_divergence,
    log_softmax,
    next_token_nll,
    top1_agreement,
)
from mllm_export.device_tests.fed import positions_off
from mllm_export.device_tests.reference import Floats, Forced
from mllm_export.device_tests.stored import as_published, decoder_kind
from mllm_export.device_tests.thumbnails import thumbnail
from mllm_export.report import Example, Measurement, Rung, paired_values, rung_of

_SHOWN = 3
_STAGES = ("", "decoder alone: ", "engine alone: ")
_MEASURES = ("mean KL", "p99 KL", "top-1 agreement", "perplexity ratio", "largest KL of few rows")

_FEW_ROWS = 100
"""Below this a share says nothing: one row that differs would be a hundredth of all."""

_FED = "positions fed with something else"
"""Of the sequences that are given to both decoders with the original's own embeddings."""

Rows = Callable[[LogitCase], Floats]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Distance:
    """One case: distances per row, and what was lost on the text's own next tokens."""

    kl: Doubles
    same: npt.NDArray[np.bool_]
    nll: Doubles
    """Export minus original; empty where no next tokens are known."""
    likeliest: tuple[int, int]
    """Next ids of original and export in the row that is furthest off."""


class Logits:
    """End to end, then the decoder on the original's embeddings, then the engine by itself.

    The last holds llama.cpp against the original's code run with the file's own dequantized
    weights, so that nothing but the engine's arithmetic is left.
    """

    measures = (*(stage + name for stage in _STAGES for name in _MEASURES), _FED)

    def run(self, context: Context) -> Rung:
        """Compare every row of every case."""
        subject = context.subject
        cases = context.oracle.logit_cases(subject)

        def whole(case: LogitCase) -> Floats:
            embeds = [subject.embeds(picture) for picture in case.pictures]
            return subject.rows(case.ids, embeds, len(case.expected))

        wrong = 0

        def decoder(case: LogitCase) -> Floats:
            nonlocal wrong
            made = subject.rows(case.ids, case.embeds, len(case.expected))
            if subject.decoder is not None:
                wrong += positions_off(subject.decoder.fed, case.ids, case.embeds)
            return made

        ends = [_distance(case, case.expected, whole(case)) for case in cases]
        alone = [(case, decoder(case)) for case in cases]
        measurements = [
            *_summary(context, "", ends),
            *_summary(
                context, "decoder alone: ", [_distance(c, c.expected, made) for c, made in alone]
            ),
            *_engine(context, alone),
        ]
        if subject.decoder is not None:
            measurements.append(context.limits.measure("logits", _FED, wrong, "positions"))
        return rung_of(
            "logits",
            reference=context.oracle.title,
            samples=sum(len(case.expected) for case in cases),
            measurements=tuple(measurements),
            examples=_worst(context, cases, ends),
            paired=(
                paired_values(
                    "mean KL", (c.name for c in cases), (float(one.kl.mean()) for one in ends)
                ),
            ),
        )


def _distance(case: LogitCase, expected: Floats, made: Floats) -> _Distance:
    reference, export = log_softmax(expected), log_softmax(made)
    following = np.asarray(case.next_ids, np.int64)
    known = len(following) == len(expected)
    kl = kl_divergence(reference, export)
    worst = int(kl.argmax())
    return _Distance(
        kl=kl,
        same=top1_agreement(expected, made),
        nll=next_token_nll(export, following) - next_token_nll(reference, following)
        if known
        else np.empty(0),
        likeliest=(int(reference[worst].argmax()), int(export[worst].argmax())),
    )


def _engine(context: Context, alone: Sequence[tuple[LogitCase, Floats]]) -> list[Measurement]:
    """Only where weights are quantized: else it is the decoder alone again."""
    live = context.live
    if live is None or decoder_kind(context.stored.decoder) == "f16":
        return []
    own = as_published(context.stored.decoder, live.reference.decoder_originals())
    sequences = [
        Forced(ids=case.ids, images=case.embeds, rows=len(case.expected)) for case, _ in alone
    ]
    context.subject.rest()
    expected = live.reference.logits(sequences, own)
    found = [
        _distance(case, rows, made) for (case, made), rows in zip(alone, expected, strict=True)
    ]
    return _summary(context, "engine alone: ", found)


def _summary(context: Context, stage: str, found: Sequence[_Distance]) -> list[Measurement]:
    kl = np.concatenate([one.kl for one in found])
    same = np.concatenate([one.same for one in found])
    lost = np.concatenate([one.nll for one in found])

    def measure(name: str, value: float, unit: str = "") -> Measurement:
        return context.limits.measure("logits", stage + name, value, unit)

    if kl.size < _FEW_ROWS:
        return [measure("largest KL of few rows", float(kl.max()), "nats")]
    measured = [
        measure("mean KL", float(kl.mean()), "nats"),
        measure("p99 KL", float(np.quantile(kl, 0.99)), "nats"),
        measure("top-1 agreement", float(same.mean())),
    ]
    if lost.size:
        measured.append(measure("perplexity ratio", float(np.exp(lost.mean()))))
    return measured


def _worst(
    context: Context, cases: Sequence[LogitCase], found: Sequence[_Distance]
) -> tuple[Example, ...]:
    order = sorted(range(len(cases)), key=lambda at: -float(found[at].kl.max()))
    sides = [[_told(context, one) for one in each.likeliest] for each in found]
    return tuple(
        Example(
            name=cases[at].name,
            reference=sides[at][0],
            export=sides[at][1],
            note=f"likeliest next in row {found[at].kl.argmax()}: KL {found[at].kl.max():.3g} nats",
            image=thumbnail(cases[at].pictures[0]) if cases[at].pictures else "",
        )
        for at in order[:_SHOWN]
    )


def _told(context: Context, token_id: int) -> str:
    """A token as text, where it has one of its own."""
    text = context.live.text((token_id,)) if context.live else ""
    return f"{text!r}, id {token_id}" if text.strip() else f"id {token_id}"


CHECK = Logits()
