"""Whether a part by itself keeps the profile's limits, and what its difference looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mllm_export.device_tests.diagnosis.mixture import NONE, Case, Mixture
from mllm_export.device_tests.diagnosis.tensors import TensorLoss, told, wrong
from mllm_export.device_tests.distributions import cosines, relative_error
from mllm_export.device_tests.originals import OriginalKey
from mllm_export.device_tests.pictures import Picture
from mllm_export.device_tests.profile import Limits
from mllm_export.device_tests.reference import Floats
from mllm_export.report import Measurement, describe

_FIT = 1e-3
"""A difference that an affine map of each channel explains to this share is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is wrong with one part by itself; both empty when nothing is."""

    outside: str = ""
    clue: str = ""


def broken(measurements: Sequence[Measurement]) -> str:
    """Those that leave their limit, as clauses."""
    return "; ".join(describe(one) for one in measurements if one.passed is False)


def preprocessing(mixture: Mixture, limits: Limits, pictures: Sequence[Picture]) -> Standing:
    """Pixels of the samples' own pictures."""
    worst, clue = 0.0, ""
    for picture in pictures:
        ours, theirs = mixture.pixels(picture, True), mixture.pixels(picture, False)
        if ours.shape != theirs.shape:
            return Standing(outside=f"pixels are {list(ours.shape)}, not {list(theirs.shape)}")
        off = float(np.abs(ours - theirs).max())
        if off > worst:
            worst, clue = off, _pixel_clue(theirs, ours)
    measured = limits.measure("pixels", "largest difference", worst, "normalised")
    text = broken([measured])
    return Standing(outside=text, clue=clue if text else "")


def _pixel_clue(theirs: Floats, ours: Floats) -> str:
    """Another order of channels, or another mean and std, where one explains the difference."""
    order = next(
        (o for o in ((2, 1, 0), (0, 2, 1), (1, 0, 2)) if np.allclose(ours, theirs[:, o])), None
    )
    if order:
        return f"channels stand in the order {order}"
    scale, shift = np.empty(3), np.empty(3)
    left = 0.0
    for channel in range(3):
        x, y = theirs[:, channel].ravel(), ours[:, channel].ravel()
        scale[channel], shift[channel] = np.polyfit(x, y, 1)
        left = max(left, relative_error(y, scale[channel] * x + shift[channel]))
    if left > _FIT:
        return "no other mean and std explains it: look at resize, crop and padding"
    shown = ", ".join(f"{a:.3f} x {b:+.3f}" for a, b in zip(scale, shift, strict=True))
    return f"as if normalised with another mean and std (by channel: {shown})"


def prompt(mixture: Mixture, cases: Sequence[Case]) -> Standing:
    """Ids of the samples' own questions, and the rules that end an answer."""
    other = [case for case in cases if case.ids != case.own_ids]
    if not other:
        return Standing()
    first = other[0]
    at = next(
        (n for n, (a, b) in enumerate(zip(first.ids, first.own_ids, strict=False)) if a != b),
        min(len(first.ids), len(first.own_ids)),
    )
    text = mixture.walked.reference.text
    plain, own = (
        text([one for one in ids[at : at + 8] if one >= 0]) for ids in (first.ids, first.own_ids)
    )
    counts = f"{len(first.own_ids)} ids in place of {len(first.ids)}"
    return Standing(
        outside=f"{len(other)} of {len(cases)} prompts have other ids",
        clue=f"{counts}; from id {at} on the original reads {plain!r}, the export {own!r}",
    )


def embeddings(
    part: str, mixture: Mixture, limits: Limits, pictures: Sequence[Picture]
) -> Standing:
    """What the part gives for the original's input: features of the tower, or embeddings."""
    worst, error, bad = 1.0, 0.0, 0
    for picture in pictures:
        get = mixture.features if part == "tower" else mixture.embeds
        ours, theirs = get(picture, frozenset({part})), get(picture, NONE)
        width = theirs.shape[-1]
        ours, theirs = ours.reshape(-1, width), theirs.reshape(-1, width)
        bad += int((~np.isfinite(ours)).sum())
        worst = min(worst, float(cosines(theirs, np.nan_to_num(ours)).min()))
        error = max(error, relative_error(theirs, np.nan_to_num(ours)))
    measure = limits.measure
    text = broken(
        [
            measure("tower", "values that are no numbers", bad),
            measure("tower", "worst-token cosine", worst),
            measure("tower", "relative error", error, "of the norm"),
        ]
    )
    return Standing(outside=text)


def with_tensors(found: Standing, part: str, losses: Sequence[TensorLoss]) -> Standing:
    """The same, with the part's tensors that are not as published."""
    bad = wrong(losses, part)
    text = "; ".join(filter(None, (found.outside, told(bad, 1))))
    return Standing(outside=text, clue=told(bad))


def weights(part: str, limits: Limits, alone_kl: float, losses: Sequence[TensorLoss]) -> Standing:
    """Decoder or head: its stored tensors, and what they cost by themselves."""
    bad = wrong(losses, part)
    cost = limits.measure("logits", "decoder alone: mean KL", alone_kl, "nats")
    text = "; ".join(filter(None, (told(bad, 1), broken([cost]))))
    return Standing(outside=text, clue=told(bad))


def arithmetic(limits: Limits, kl: float) -> Standing:
    """KV cache or engine: what they cost by themselves, at the engine's limit."""
    return Standing(outside=broken([limits.measure("logits", "engine alone: mean KL", kl, "nats")]))


def keys(found: Mapping[str, object], expected: Sequence[OriginalKey]) -> str:
    """Metadata of the decoder's file that says something else than the config, as a clause."""
    other = [
        f"{one.key} is {found.get(one.key, 'absent')}, not {one.value}"
        for one in expected
        if not _equal(found.get(one.key, one.default), one.value)
    ]
    return "; ".join(other[:3])


def _equal(one: object, other: object) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return bool(np.isclose(one, other, rtol=1e-6, atol=0))
    return one == other
