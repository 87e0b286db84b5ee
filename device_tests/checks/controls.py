"""Does the answer depend on the picture, and as much as the original's does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mllm_export.device_tests.check import NEEDS_ORIGINAL, Context
from mllm_export.device_tests.controls import blank, shuffled
from mllm_export.device_tests.distributions import jensen_shannon, log_softmax
from mllm_export.device_tests.live import LiveOracle
from mllm_export.device_tests.pictures import Picture
from mllm_export.device_tests.reference import Floats, Forced
from mllm_export.device_tests.sequences import spread
from mllm_export.report import Measurement, Rung, not_run, rung_of

_CONTROLS = ("blank", "swapped", "shuffled")

_STILL = 1e-4
"""Nats; an original that moves less than this does not look at the picture at all."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sample:
    """A prompt's ids, its picture, and what replaces the picture."""

    ids: tuple[int, ...]
    pictures: tuple[Picture, ...]
    """The true one, then one for each control."""


class Controls:
    """How far the first answer token's distribution moves when the picture is replaced.

    Distances are Jensen-Shannon divergences in nats: between 0 and log 2 whatever the scale of
    the logits, so that a few certain answers do not outweigh all others.
    """

    measures = tuple(f"{name} picture: movement kept" for name in _CONTROLS)

    def run(self, context: Context) -> Rung:
        """Compare the movement of both."""
        live = context.live
        if live is None:
            return not_run("controls", NEEDS_ORIGINAL)
        samples = _samples(live)
        if not samples:
            return not_run("controls", "fewer than two pictures to ask about")
        pictures = [picture for sample in samples for picture in sample.pictures]
        context.subject.prepare(pictures)
        ours = [_own_rows(context, sample) for sample in samples]
        context.subject.rest()
        theirs = _original_rows(live, samples)
        if max(float(_movement(rows).max()) for rows in theirs) < _STILL:
            return not_run("controls", "the original's own answers do not depend on the picture")
        return rung_of(
            "controls",
            reference=live.title,
            samples=len(samples),
            measurements=tuple(_measurements(context, theirs, ours)),
        )


def _samples(live: LiveOracle) -> list[_Sample]:
    """Questions about one picture each; the swapped picture is the next question's."""
    asked = [one for one in live.samples.questions if len(one.pictures) == 1]
    names = list(dict.fromkeys(one.pictures[0] for one in asked))
    if len(names) < 2:
        return []
    found = []
    for at in spread(len(asked), live.effort.controls):
        name = asked[at].pictures[0]
        other = names[(names.index(name) + 1) % len(names)]
        true, swapped = live.samples.pictures[name], live.samples.pictures[other]
        found.append(
            _Sample(
                ids=tuple(live.reference.prompt_ids(asked[at].text, 1)),
                pictures=(true, blank(true), swapped, shuffled(true)),
            )
        )
    return found


def _own_rows(context: Context, sample: _Sample) -> Floats:
    subject = context.subject
    return np.concatenate(
        [subject.rows(sample.ids, [subject.embeds(picture)], 1) for picture in sample.pictures]
    )


def _original_rows(live: LiveOracle, samples: Sequence[_Sample]) -> list[Floats]:
    live.embeds([picture for sample in samples for picture in sample.pictures])
    sequences = [
        Forced(ids=sample.ids, images=tuple(live.embeds([picture])), rows=1)
        for sample in samples
        for picture in sample.pictures
    ]
    rows = live.reference.logits(sequences)
    each = len(samples[0].pictures)
    return [np.concatenate(rows[at : at + each]) for at in range(0, len(rows), each)]


def _movement(rows: Floats) -> np.ndarray:
    """Distance of each control's row from the true one's. Shapes: f32[4, V] -> f64[3]."""
    logs = log_softmax(rows)
    return jensen_shannon(np.broadcast_to(logs[0], logs[1:].shape), logs[1:])


def _measurements(
    context: Context, theirs: Sequence[Floats], ours: Sequence[Floats]
) -> list[Measurement]:
    original = np.mean([_movement(rows) for rows in theirs], axis=0)
    export = np.mean([_movement(rows) for rows in ours], axis=0)
    measure = context.limits.measure
    found: list[Measurement] = []
    for name, expected, moved in zip(_CONTROLS, original, export, strict=True):
        found.append(
            measure("controls", f"{name} picture: original moves", float(expected), "nats")
        )
        found.append(measure("controls", f"{name} picture: export moves", float(moved), "nats"))
        if expected >= _STILL:
            kept = min(expected, moved) / max(expected, moved)
            found.append(measure("controls", f"{name} picture: movement kept", float(kept)))
    return found


CHECK = Controls()
