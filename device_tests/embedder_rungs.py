"""The rungs of an encoder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mllm_export.device_tests.accuracy import accuracy
from mllm_export.device_tests.check import NEEDS_ORIGINAL
from mllm_export.device_tests.checks.tower import EXACT
from mllm_export.device_tests.checks.weights import by_scheme, loss_of
from mllm_export.device_tests.distributions import cosines, relative_error
from mllm_export.device_tests.embedder_oracle import (
    LABELS,
    EmbedderOracle,
    ImageCase,
    LiveEmbedder,
    TextCase,
    image_case,
    movements,
    templated,
    text_case,
)
from mllm_export.device_tests.labelled import Labelled
from mllm_export.device_tests.originals import Original
from mllm_export.device_tests.pictures import Picture
from mllm_export.device_tests.profile import Limits
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored import Stored, as_published
from mllm_export.device_tests.tower_file import GraphOpener
from mllm_export.embedder import PATCHES, TEXT_EMBEDS
from mllm_export.plan import Role
from mllm_export.report import Measurement, Rung, TensorRow, not_run, rung_of
from mllm_export.runtimes.embedder import EmbedderSession
from mllm_export.spec import IMAGE_EMBEDS

NO_TEXT = "the checkpoint has no text tower"
_STILL = 1e-6
"""Nats; labels of an original that move less than this do not depend on the picture."""

_Pairs = list[tuple[Floats, Floats]]
"""Rows expected and made. Shapes: f32[T, D] twice each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbedderContext:
    """Everything a rung may look at."""

    session: EmbedderSession
    oracle: EmbedderOracle
    limits: Limits
    stored: Mapping[str, Stored]
    """Every tensor of both files."""
    more: Mapping[tuple[str, Role], GraphOpener]
    """Further ways to run the same files: its name, and the file's role."""
    labelled: tuple[Labelled, ...]

    @property
    def live(self) -> LiveEmbedder | None:
        """The original itself, where it is at hand."""
        return self.oracle if isinstance(self.oracle, LiveEmbedder) else None

    def scores(self, picture: Picture, texts: Sequence[str]) -> Floats:
        """The export's scores. Shapes: f32[L]."""
        with picture.open() as image:
            embedded = self.session.embed_image(image)
        return self.session.scores(embedded, [self.session.embed_text(text) for text in texts])


def _pixels(context: EmbedderContext) -> Rung:
    worst, total, other = 0.0, 0.0, 0
    cases = context.oracle.pixel_cases()
    for picture, expected in cases:
        with picture.open() as image:
            made = context.session.preprocess(image)
        if made.shape != expected.shape:
            other += 1
            continue
        off = np.abs(made.astype(np.float64) - expected)
        worst, total = max(worst, float(off.max())), total + float(off.mean())
    return _rung(context, "pixels", len(cases), {
        "largest difference": worst,
        "mean difference": total / len(cases),
        "pictures of another shape": other,
    })  # fmt: skip


def _prompt(context: EmbedderContext) -> Rung:
    if context.session.spec.text is None:
        return not_run("prompt", NO_TEXT)
    cases = context.oracle.prompt_cases()
    wrong = sum(context.session.encode(text) != ids for text, ids in cases)
    return _rung(context, "prompt", len(cases), {"prompts with other ids": wrong})


@dataclass(frozen=True, kw_only=True)
class _Cases:
    """What is expected of the files, or what they made of it."""

    images: Sequence[ImageCase]
    texts: Sequence[TextCase]


def _tower(context: EmbedderContext) -> Rung:
    oracle, session = context.oracle, context.session
    cases = _Cases(images=oracle.image_cases(), texts=oracle.text_cases())
    seen = [session.features(case.pixels) for case in cases.images]
    made = _Cases(
        images=[
            ImageCase(pixels=c.pixels, expected=s.embedding, patches=s.patches)
            for c, s in zip(cases.images, seen, strict=True)
        ],
        texts=[replace(case, expected=session.embed_text(case.text)) for case in cases.texts],
    )
    measured = [
        *_held(context, "", cases, made),
        context.limits.measure("tower", "values that are no numbers", 0),
        *_worst_cosines(context, cases, made),
    ]
    for name in dict.fromkeys(name for name, _ in context.more):
        again = _made_again(context, name, cases)
        measured += _held(context, f"{name}: ", cases, again)
        if name == EXACT and (own := _on_own_weights(context, cases)):
            measured += _held(context, f"{name}, on its own weights: ", own, again)
    return rung_of(
        "tower",
        reference=oracle.title,
        samples=len(cases.images) + len(cases.texts),
        measurements=tuple(measured),
    )


def _made_again(context: EmbedderContext, name: str, cases: _Cases) -> _Cases:
    """What the same files make of the cases when they are run in another way."""
    graph = context.more[name, "tower"]()
    images, texts = list[ImageCase](), list[TextCase]()
    for case in cases.images:
        made = graph(case.pixels)
        images.append(replace(case, expected=made[IMAGE_EMBEDS][0], patches=made[PATCHES][0]))
    if cases.texts:
        graph = context.more[name, "text_tower"]()
        for text in cases.texts:
            ids = np.array([context.session.encode(text.text)], np.int64)
            texts.append(replace(text, expected=graph(ids)[TEXT_EMBEDS][0]))
    return _Cases(images=images, texts=texts)


def _on_own_weights(context: EmbedderContext, cases: _Cases) -> _Cases | None:
    """What the original makes of the cases with the files' own weights in it, dequantized.

    None without the original, or where a tensor is missing, which the weights rung tells.
    """
    live, stored = context.live, context.stored
    originals = _originals(live) if live else {}
    wrong = [n for n, o in originals.items() if n not in stored or stored[n].shape != o.shape]
    if live is None or wrong:
        return None
    read = as_published(stored, originals)
    held = live.holding({one.source: read(one.source) for one in originals.values()})
    return _Cases(
        images=[image_case(held, case.pixels) for case in cases.images],
        texts=[text_case(held, case.text) for case in cases.texts],
    )


def _held(context: EmbedderContext, of: str, cases: _Cases, made: _Cases) -> Iterator[Measurement]:
    """Embeddings and patches apart, each with the limits that a tower's rows have."""
    for what, pairs in (
        ("", [*_embeddings(cases.images, made.images), *_embeddings(cases.texts, made.texts)]),
        ("patches: ", _patches(cases, made)),
    ):
        for name, value in _compared(pairs).items():
            measured = context.limits.measure("tower", of + name, value)
            yield replace(measured, name=of + what + name)


def _worst_cosines(context: EmbedderContext, cases: _Cases, made: _Cases) -> Iterator[Measurement]:
    """Of images and of texts by themselves."""
    for what, pairs in (
        ("image", _embeddings(cases.images, made.images)),
        ("text", _embeddings(cases.texts, made.texts)),
    ):
        if pairs:
            worst = _compared(pairs)["worst-token cosine"]
            yield context.limits.measure("tower", f"{what}: worst cosine", worst)


def _embeddings(
    cases: Sequence[ImageCase | TextCase], made: Sequence[ImageCase | TextCase]
) -> _Pairs:
    """Each is one row."""
    return [(c.expected[None], one.expected[None]) for c, one in zip(cases, made, strict=True)]


def _patches(cases: _Cases, made: _Cases) -> _Pairs:
    pairs = zip(cases.images, made.images, strict=True)
    return [(case.patches, one.patches) for case, one in pairs]


def _compared(pairs: _Pairs) -> dict[str, float]:
    rows = np.concatenate([cosines(expected, made) for expected, made in pairs])
    return {
        "worst-token cosine": float(rows.min()),
        "mean-token cosine": float(rows.mean()),
        "relative error": max(relative_error(expected, made) for expected, made in pairs),
    }


def _weights(context: EmbedderContext) -> Rung:
    """Every stored tensor against the one that the original's own modules hold."""
    if context.live is None:
        return not_run("weights", NEEDS_ORIGINAL)
    originals, stored = _originals(context.live), context.stored
    common = sorted(set(stored) & set(originals))
    shaped = [n for n in common if stored[n].shape == originals[n].shape]
    losses = {n: (stored[n].scheme, loss_of(stored[n], originals[n])) for n in shaped}
    rung = _rung(context, "weights", len(shaped), {
        "tensors missing": len(set(originals) - set(stored)),
        "tensors that should not be there": len(set(stored) - set(originals)),
        "tensors of another shape": len(common) - len(shaped),
        "values that are not the source's, rounded": sum(x.unrounded for _, x in losses.values()),
    })  # fmt: skip
    rows = tuple(
        TensorRow(name=name, scheme=scheme, sqnr_db=loss.sqnr_db, note="")
        for name, (scheme, loss) in losses.items()
    )
    measured = (*rung.measurements, *by_scheme(context.limits, losses))
    return rung_of(
        "weights",
        reference=rung.reference,
        samples=len(shaped),
        measurements=measured,
        tensors=rows,
    )


def _originals(live: LiveEmbedder) -> dict[str, Original]:
    """By name in the files, what the original's modules hold under the published names."""
    known = live.original.stored()
    found: dict[str, Original] = {}
    for take in live.reading.weights.takes:
        values, linear = known[take.source]
        if take.parameter == "pos_embed":  # the module's may have been resized
            values = np.asarray(live.original.positions(), np.float32)
        matrix = values.reshape(values.shape[:2]) if linear else values
        found[f"{take.part}.{take.parameter}"] = Original(
            source=take.source,
            shape=matrix.shape[::-1] if linear else values.shape,
            read=lambda values=values: values,  # type: ignore[misc]  # mypy cannot type the default
            transposed=linear,
        )
    return found


def _task(context: EmbedderContext) -> Rung:
    if not context.labelled:
        return not_run("task", "no pictures with known labels; give an evaluation file (JSONL)")
    if context.session.spec.text is None:
        return not_run("task", NO_TEXT)
    if context.live is None:
        return not_run("task", NEEDS_ORIGINAL)
    right: list[tuple[bool, bool]] = []
    for one in context.labelled:
        texts = templated(context.session.spec, one.labels)
        at = one.labels.index(one.answer)
        theirs = context.live.scores(one.picture, texts)
        ours = context.scores(one.picture, texts)
        right.append((int(theirs.argmax()) == at, int(ours.argmax()) == at))
    original, export = np.array(right).T
    return rung_of(
        "task",
        reference=context.oracle.title,
        samples=len(right),
        measurements=accuracy(context.limits, original, export),
    )


def _controls(context: EmbedderContext) -> Rung:
    """How far the probabilities of some labels move when the picture is replaced."""
    if context.session.spec.text is None:
        return not_run("controls", NO_TEXT)
    theirs, pictures = context.oracle.movements(), context.oracle.pictures
    if min(theirs.values()) < _STILL:
        return not_run("controls", "the original's own scores do not depend on the picture")
    ours = movements(context.scores, pictures, templated(context.session.spec, LABELS))
    found = {
        f"{name} picture: movement kept": min(moved, ours[name]) / max(moved, ours[name])
        for name, moved in theirs.items()
    }
    return _rung(context, "controls", len(pictures), found)


RUNGS: Mapping[str, Callable[[EmbedderContext], Rung]] = {
    "pixels": _pixels,
    "prompt": _prompt,
    "tower": _tower,
    "weights": _weights,
    "task": _task,
    "controls": _controls,
}


def _rung(context: EmbedderContext, name: str, samples: int, values: Mapping[str, float]) -> Rung:
    measured: tuple[Measurement, ...] = tuple(
        context.limits.measure(name, key, float(value)) for key, value in values.items()
    )
    return rung_of(name, reference=context.oracle.title, samples=samples, measurements=measured)
