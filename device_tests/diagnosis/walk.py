"""The layers of one part, to the first that leaves its limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mllm_export.device_tests.diagnosis.losses import Judge
from mllm_export.device_tests.diagnosis.mixture import (
    NONE,
    Case,
    DecoderWeights,
    Mixture,
    part_of,
)
from mllm_export.device_tests.diagnosis.tensors import TensorLoss, told, wrong
from mllm_export.device_tests.diagnosis.walked import Walked, makers
from mllm_export.device_tests.distributions import cosines, relative_error
from mllm_export.device_tests.originals import Original
from mllm_export.device_tests.pictures import Picture
from mllm_export.device_tests.profile import Limits
from mllm_export.device_tests.reference import Floats, Forced
from mllm_export.diagnosis import LayerStep, LayerWalk
from mllm_export.report import LayerDrift

_FIRST = "embeddings"
"""What stands before the first layer."""


def tower_drift(mixture: Mixture, pictures: Sequence[Picture]) -> list[LayerDrift]:
    """States of the exported graph against the original's, by name, on the original's pixels.

    Empty where the graph shows no seam between its layers.
    """
    walked = mixture.walked
    layers = walked.tower_layers
    names = [mixture.graph.entry((f"tower.{prefix}",)) for prefix in layers]
    sides: list[tuple[dict[str, Floats], dict[str, Floats]]] = []
    for picture in pictures:
        tile = mixture.pixels(picture, exported=False)[:1]
        theirs = walked.tower_states(tile)
        there = [(p, n) for p, n in zip(layers, names, strict=True) if n and p in theirs]
        ours = mixture.graph.states([name for _, name in there], tile)
        made = {prefix: one for (prefix, _), one in zip(there, ours, strict=True)}
        if mixture.is_cut:
            theirs["features"] = mixture.features(picture, NONE)[:1]
            made["features"] = mixture.features(picture, frozenset({"tower"}))[:1]
        sides.append((theirs, made))
    return _drifts("tower", [*layers, "features"], sides) if sides else []


def decoder_drift(
    walked: Walked, decoder: DecoderWeights, sequences: Sequence[Forced]
) -> list[LayerDrift]:
    """States behind every layer: the original with the stored weights against the original."""
    theirs, _ = walked.decoder_states(sequences, None)
    ours, _ = walked.decoder_states(sequences, decoder.choosing(_is_in_decoder))
    order = [*walked.decoder_layers(), *(p for p in theirs if p not in walked.decoder_layers())]
    return _drifts("decoder", order, [(theirs, ours)])


def _is_in_decoder(name: str) -> bool:
    return part_of(name) == "decoder"


def _drifts(
    part: str, order: Sequence[str], sides: Sequence[tuple[dict[str, Floats], dict[str, Floats]]]
) -> list[LayerDrift]:
    """A state that enters a layer is what the layer before it made."""
    found: list[LayerDrift] = []
    for prefix, maker in makers(order).items():
        pairs = [(a[prefix], b[prefix]) for a, b in sides if prefix in a and prefix in b]
        if pairs:
            found.append(_drift(part, maker, pairs))
    return found


def _drift(part: str, name: str, pairs: Sequence[tuple[Floats, Floats]]) -> LayerDrift:
    width = pairs[0][0].shape[-1]
    flat = [(a.reshape(-1, width), np.nan_to_num(b).reshape(-1, width)) for a, b in pairs]
    tokens = np.concatenate([cosines(a, b) for a, b in flat])
    return LayerDrift(
        part=part,
        name=name,
        mean_cosine=float(tokens.mean()),
        worst_cosine=float(tokens.min()),
        relative_error=max(relative_error(a, b) for a, b in flat),
    )


def walk_tower(
    mixture: Mixture,
    limits: Limits,
    pictures: Sequence[Picture],
    losses: Sequence[TensorLoss],
) -> LayerWalk:
    """Relative error of the state behind every layer; the cosine of its worst token too."""
    steps = []
    limit: float | None = None
    for one in tower_drift(mixture, pictures):
        error = limits.measure("tower", "relative error", one.relative_error)
        cosine = limits.measure("tower", "worst-token cosine", one.worst_cosine)
        limit = error.limit
        bad = wrong(losses, "tower", f"tower.{one.name}.")
        steps.append(
            LayerStep(
                name=one.name,
                value=one.relative_error,
                outside=error.passed is False or cosine.passed is False,
                note="; ".join(filter(None, (_cosine(one), told(bad)))),
            )
        )
    return LayerWalk(
        part="tower", measure="relative error of the state", limit=limit, steps=tuple(steps)
    )


def _cosine(one: LayerDrift) -> str:
    return f"worst-token cosine {one.worst_cosine:.6g}"


def walk_decoder(
    mixture: Mixture,
    limits: Limits,
    judge: Judge,
    cases: Sequence[Case],
    losses: Sequence[TensorLoss],
) -> LayerWalk:
    """The original with the stored weights of its first layers, one more at each step."""
    names = mixture.decoder.names
    sequences = [mixture.forced(case, NONE) for case in cases]
    steps: list[LayerStep] = []
    limit: float | None = None
    for label, upto, inside in _depths(mixture):
        reader = mixture.decoder.choosing(upto.__contains__)
        kl = judge.kl(mixture.with_weights(sequences, reader, rounded=False))
        measured = limits.measure("logits", "decoder alone: mean KL", kl, "nats")
        limit = measured.limit
        own = {names[source] for source in inside}
        bad = [one for one in wrong(losses, "decoder") if one.name in own]
        steps.append(
            LayerStep(
                name=label, value=kl, outside=measured.passed is False or bool(bad), note=told(bad)
            )
        )
    return LayerWalk(
        part="decoder",
        measure="mean KL with the stored weights up to here, nats",
        limit=limit,
        steps=tuple(steps),
    )


def _depths(mixture: Mixture) -> Iterator[tuple[str, set[str], list[str]]]:
    """Label, names in GGUF of all that is stored up to here, and sources that this step adds."""
    names = mixture.decoder.names
    layers = mixture.walked.decoder_layers()
    rest = [
        source
        for source, name in names.items()
        if part_of(name) == "decoder" and not source.startswith(layers)
    ]
    upto = {names[source] for source in rest}
    yield _FIRST, set(upto), rest
    for prefix in layers:
        inside = [source for source in names if source.startswith(prefix)]
        upto |= {names[source] for source in inside}
        yield prefix.rstrip("."), set(upto), inside


def walk_tensors(
    part: str, losses: Sequence[TensorLoss], originals: dict[str, Original]
) -> LayerWalk:
    """A part without layers: its tensors, in their order."""
    steps = [
        LayerStep(
            name=originals[one.name].source,
            value=one.sqnr_db,
            outside=bool(one.why),
            note=one.why,
        )
        for one in losses
        if one.part == part and one.sqnr_db is not None
    ]
    return LayerWalk(
        part=part, measure="signal to quantization noise, dB", limit=None, steps=tuple(steps)
    )
