"""What was found, in a sentence or two."""

from __future__ import annotations

from mllm_export.diagnosis import Diagnosis, LayerStep, LayerWalk, PartShare

_TITLES = {
    "preprocessing": "the preprocessing",
    "prompt": "the prompt",
    "tower": "the vision tower",
    "projector": "the projector",
    "decoder": "the decoder",
    "head": "the decoder's output head",
    "kv": "the KV cache's type",
    "engine": "the engine",
}


_NEARLY_ALL = 0.95
"""A share may pass 1: the other parts then happen to pull the other way."""


def sentence(found: Diagnosis) -> str:
    """The part to blame with its figures, and the first layer that leaves the limit."""
    if found.blamed:
        part = next(one for one in found.parts if one.name == found.blamed)
        return f"{_blame(found, part)} {_layer(found.walk)}{_others(found, part)}".strip()
    part = max(found.parts, key=lambda one: one.share)
    loss = f"The export loses {found.kl:.3g} nats and {found.points:.1f} points in all"
    if found.kl <= 0:
        return f"No part leaves its limit. {loss}."
    much = (
        "nearly all of it" if part.share > _NEARLY_ALL else f"the largest share, {part.share:.0%},"
    )
    return f"No part leaves its limit. {loss}; {much} is {_TITLES[part.name]}'s."


def _blame(found: Diagnosis, part: PartShare) -> str:
    title = _TITLES[part.name]
    answers = "accuracy" if found.trained else "answers like the original's"
    text = (
        f"{title[0].upper()}{title[1:]} is to blame: {part.outside}. By itself it costs "
        f"{part.alone_kl:.3g} nats and {part.alone_points:.1f} points of {answers}, of "
        f"{found.kl:.3g} nats and {found.points:.1f} points that the export loses."
    )
    clue = "" if not part.clue or part.clue in part.outside else f" The difference: {part.clue}."
    return text + clue


def _layer(walk: LayerWalk | None) -> str:
    if walk is None:
        return ""
    first = walk.first
    if first is None:
        step = _largest_step(walk)
        at = f"; the largest step is at {step.name}" if step else ""
        return f"No single layer leaves its limit{at}."
    rest = [one for one in walk.steps if one.outside]
    alone = len(rest) == 1 and len(walk.steps) > 1
    where = "Only" if alone else "From"
    tail = "is wrong" if alone else "on it is wrong"
    note = f" ({first.note})" if first.note else ""
    return f"{where} {first.name} {tail}: {walk.measure} {first.value:.3g}{_limit(walk)}{note}."


def _limit(walk: LayerWalk) -> str:
    return f", limit {walk.limit:g}" if walk.limit is not None else ""


def _largest_step(walk: LayerWalk) -> LayerStep | None:
    if walk.limit is None or not walk.steps:
        return None
    before = [0.0, *(one.value for one in walk.steps)]
    return max(zip(walk.steps, before, strict=False), key=lambda p: p[0].value - p[1])[0]


def _others(found: Diagnosis, part: PartShare) -> str:
    others = [one.name for one in found.parts if one.outside and one is not part]
    return f" Outside its limit too: {', '.join(others)}." if others else ""
