"""The ladder of an encoder alone: pixels, prompt, tower (both), weights, task, controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.bootstrap import paired_interval
from mllm_export.device_tests.checks.weights import loss_of
from mllm_export.device_tests.controls import blank, shuffled
from mllm_export.device_tests.distributions import (
    cosines,
    jensen_shannon,
    log_softmax,
    relative_error,
)
from mllm_export.device_tests.originals import Original
from mllm_export.device_tests.pictures import Picture, file_picture, ladder, scenes
from mllm_export.device_tests.profile import Limits, load_profile
from mllm_export.device_tests.questions import NASTY, PLAIN
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored_tower import read_onnx
from mllm_export.embedder import IMAGE_FILE, TEXT_FILE, EmbedderManifest
from mllm_export.errors import CheckError, EngineError, ImageError
from mllm_export.progress import Progress, Step, silent
from mllm_export.report import ArtifactSize, Measurement, Report, Rung, not_run, rung_of

if TYPE_CHECKING:
    from mllm_export.device_tests.references._embedders import EmbedderOriginal
    from mllm_export.export.embedder_parts import EmbedderReading
    from mllm_export.runtimes.embedder import EmbedderSession

_SCENES = 6
_LABELS = ("a red circle", "a blue square", "a dog", "two birds on a wire", "7")
NO_TEXT = "the checkpoint has no text tower"
_STILL = 1e-6
"""Nats; labels of an original that move less than this do not depend on the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A picture, the labels it may have, and the right one."""

    picture: Picture
    labels: tuple[str, ...]
    answer: str


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbedderContext:
    """Everything a rung may look at."""

    folder: Path
    reading: EmbedderReading
    session: EmbedderSession
    original: EmbedderOriginal
    limits: Limits
    labelled: tuple[Labelled, ...]

    @cached_property
    def pictures(self) -> list[Picture]:
        """A few drawn scenes."""
        return list(scenes(_SCENES))

    def pixels(self, picture: Picture) -> Floats:
        """Through the original's processor."""
        with picture.open() as image:
            return self.original.pixels(image)

    def theirs(self, picture: Picture, texts: Sequence[str]) -> Floats:
        """The original's scores. Shapes: f32[L]."""
        original = self.original
        image = original.embed_image(self.pixels(picture))
        rows = np.stack([original.embed_text(original.ids(text)) for text in texts])
        rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        cosine = rows @ (image / np.linalg.norm(image))
        return np.asarray(original.scale * cosine + original.bias, np.float32)

    def ours(self, picture: Picture, texts: Sequence[str]) -> Floats:
        """The export's scores. Shapes: f32[L]."""
        with picture.open() as image:
            embedded = self.session.embed_image(image)
        return self.session.scores(embedded, [self.session.embed_text(text) for text in texts])


def check_embedder(
    folder: Path,
    manifest: EmbedderManifest,
    checkpoint: Checkpoint,
    reading: EmbedderReading,
    evaluation: Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Hold a bundle against its original. Raises: CheckError when that cannot be done."""
    from mllm_export.device_tests.references._embedders import load_original
    from mllm_export.runtimes.embedder import EmbedderSession

    labelled = () if evaluation is None else read_labelled(evaluation)
    context = EmbedderContext(
        folder=folder,
        reading=reading,
        session=EmbedderSession(folder, manifest),
        original=load_original(checkpoint),
        limits=Limits(load_profile(manifest.profile), "f16", "f16", bool(labelled)),
        labelled=labelled,
    )
    rungs = tuple(_timed(name, run, context, progress) for name, run in _RUNGS.items())
    sizes = tuple(ArtifactSize(path=f.path, size_bytes=f.size_bytes) for f in manifest.files)
    return Report(
        model=manifest.model.name,
        family=manifest.model.family,
        target=manifest.target,
        recipe=manifest.recipe,
        profile=manifest.profile,
        rungs=rungs,
        sizes=sizes,
        tools=manifest.tools,
        notes=(f"reference: {context.original.title}", *reading.notes),
    )


def check_embedder_stage(
    folder: Path,
    manifest: EmbedderManifest,
    source: Path,
    evaluation: Path | None,
    progress: Progress,
) -> Report:
    """`check_embedder` in a process of its own."""
    from mllm_export.export.embedder_parts import embedder_for

    checkpoint = Checkpoint(source)
    entry = embedder_for(checkpoint.config)
    if entry is None:
        raise CheckError(f"{source} is no encoder alone")
    reading = entry.read(checkpoint)
    if reading.spec != replace(manifest.model, name=reading.spec.name):
        raise CheckError(f"{source} is not what {folder} was built from: sizes differ")
    return check_embedder(folder, manifest, checkpoint, reading, evaluation, progress)


def read_labelled(path: Path) -> tuple[Labelled, ...]:
    """An evaluation file: one JSON object a line with image, labels and answer.

    Raises: CheckError naming the line and what is wrong with it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise CheckError(f"evaluation file {path} cannot be read ({failure})") from failure
    found = tuple(_labelled(line, path, at) for at, line in enumerate(lines, 1) if line.strip())
    if not found:
        raise CheckError(f"evaluation file {path} holds no pictures")
    return found


def _labelled(line: str, path: Path, at: int) -> Labelled:
    where = f"{path}, line {at}"
    try:
        data = json.loads(line)
    except json.JSONDecodeError as failure:
        raise CheckError(f"{where}: not valid JSON ({failure})") from failure
    if not isinstance(data, dict) or not isinstance(data.get("image"), str):
        raise CheckError(f"{where}: needed: an object with image, labels and answer")
    labels, answer = data.get("labels"), data.get("answer")
    if not isinstance(labels, list) or not all(isinstance(one, str) for one in labels):
        raise CheckError(f"{where}: key 'labels' is {labels!r}, needed: a list of strings")
    if not isinstance(answer, str) or answer not in labels:
        raise CheckError(f"{where}: answer {answer!r} is none of the labels {labels}")
    file = path.parent / data["image"]
    if not file.is_file():
        raise CheckError(f"{where}: picture '{data['image']}' is not there; looked for {file}")
    picture = file_picture(data["image"], file)
    return Labelled(picture=picture, labels=tuple(labels), answer=answer)


def _pixels(context: EmbedderContext) -> Rung:
    worst, total, other = 0.0, 0.0, 0
    pictures = list(ladder())
    for picture in pictures:
        expected = context.pixels(picture)
        with picture.open() as image:
            made = context.session.preprocess(image)
        if made.shape != expected.shape:
            other += 1
            continue
        off = np.abs(made.astype(np.float64) - expected)
        worst, total = max(worst, float(off.max())), total + float(off.mean())
    return _rung(context, "pixels", len(pictures), {
        "largest difference": worst,
        "mean difference": total / len(pictures),
        "pictures of another shape": other,
    })  # fmt: skip


def _prompt(context: EmbedderContext) -> Rung:
    if context.session.spec.text is None:
        return not_run("prompt", NO_TEXT)
    texts = (*PLAIN, *NASTY, *(_texts(context, _LABELS)), "word " * 200)
    wrong = sum(context.session.encode(text) != context.original.ids(text) for text in texts)
    return _rung(context, "prompt", len(texts), {"prompts with other ids": wrong})


def _tower(context: EmbedderContext) -> Rung:
    pixels = [context.pixels(picture) for picture in context.pictures]
    noise = np.random.default_rng(11).standard_normal(pixels[0].shape).astype(np.float32)
    pixels += [noise, np.full_like(noise, 0.25)]
    pairs = [(context.original.embed_image(p), context.session.embed_pixels(p)) for p in pixels]
    found = {"image: worst cosine": _worst_cosine(pairs)}
    if context.session.spec.text is not None:
        texts = _texts(context, (*_LABELS, "", "word " * 200))
        of_text = [
            (context.original.embed_text(context.original.ids(t)), context.session.embed_text(t))
            for t in texts
        ]
        found["text: worst cosine"] = _worst_cosine(of_text)
        pairs += of_text
    each = [float(cosines(e[None], m[None])[0]) for e, m in pairs]
    return _rung(context, "tower", len(pairs), {
        "worst-token cosine": min(each),
        "mean-token cosine": float(np.mean(each)),
        "relative error": max(relative_error(e, m) for e, m in pairs),
        "values that are no numbers": 0,
        **found,
    })  # fmt: skip


def _weights(context: EmbedderContext) -> Rung:
    """Every initializer against the tensor that the original's own modules hold."""
    originals = _originals(context)
    stored = read_onnx(context.folder / IMAGE_FILE)
    if context.session.spec.text is not None:
        stored |= read_onnx(context.folder / TEXT_FILE)
    common = sorted(set(stored) & set(originals))
    shaped = [n for n in common if stored[n].shape == originals[n].shape]
    unrounded = sum(loss_of(stored[n], originals[n]).unrounded for n in shaped)
    return _rung(context, "weights", len(shaped), {
        "tensors missing": len(set(originals) - set(stored)),
        "tensors that should not be there": len(set(stored) - set(originals)),
        "tensors of another shape": len(common) - len(shaped),
        "values that are not the source's, rounded": unrounded,
    })  # fmt: skip


def _originals(context: EmbedderContext) -> dict[str, Original]:
    """By name in the files, what the original's modules hold under the published names."""
    known = context.original.stored()
    found: dict[str, Original] = {}
    for take in context.reading.weights.takes:
        values, linear = known[take.source]
        if take.parameter == "pos_embed":  # the module's may have been resized
            values = np.asarray(context.original.positions(), np.float32)
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
    right: list[tuple[bool, bool]] = []
    for one in context.labelled:
        texts = _texts(context, one.labels)
        at = one.labels.index(one.answer)
        theirs, ours = context.theirs(one.picture, texts), context.ours(one.picture, texts)
        right.append((int(theirs.argmax()) == at, int(ours.argmax()) == at))
    original, export = np.array(right).T
    low, high = paired_interval(export.astype(float) - original)
    return _rung(context, "task", len(right), {
        "accuracy of the original": 100 * float(original.mean()),
        "accuracy of the export": 100 * float(export.mean()),
        "accuracy lost": 100 * float(original.mean() - export.mean()),
        "difference, lower end of 95 %": 100 * low,
        "difference, upper end of 95 %": 100 * high,
    })  # fmt: skip


def _controls(context: EmbedderContext) -> Rung:
    """How far the probabilities of some labels move when the picture is replaced."""
    if context.session.spec.text is None:
        return not_run("controls", NO_TEXT)
    texts = _texts(context, _LABELS)
    pictures = context.pictures
    swapped = dict(zip((p.name for p in pictures), (*pictures[1:], pictures[0]), strict=True))
    changes: Mapping[str, Callable[[Picture], Picture]] = {
        "blank": blank, "swapped": lambda p: swapped[p.name], "shuffled": shuffled,
    }  # fmt: skip
    found: dict[str, float] = {}
    for name, change in changes.items():
        moved = [
            np.mean([_moved(score(p, texts), score(change(p), texts)) for p in pictures])
            for score in (context.theirs, context.ours)
        ]
        if moved[0] < _STILL:
            return not_run("controls", "the original's own scores do not depend on the picture")
        found[f"{name} picture: movement kept"] = float(min(moved) / max(moved))
    return _rung(context, "controls", len(pictures), found)


def _moved(one: Floats, other: Floats) -> float:
    return float(jensen_shannon(log_softmax(one[None]), log_softmax(other[None]))[0])


_RUNGS: dict[str, Callable[[EmbedderContext], Rung]] = {
    "pixels": _pixels,
    "prompt": _prompt,
    "tower": _tower,
    "weights": _weights,
    "task": _task,
    "controls": _controls,
}


def _texts(context: EmbedderContext, labels: Sequence[str]) -> list[str]:
    return [context.session.spec.template.replace("{}", label) for label in labels]


def _worst_cosine(pairs: Sequence[tuple[Floats, Floats]]) -> float:
    return min(float(cosines(e[None], m[None])[0]) for e, m in pairs)


def _rung(context: EmbedderContext, name: str, samples: int, values: Mapping[str, float]) -> Rung:
    measured: tuple[Measurement, ...] = tuple(
        context.limits.measure(name, key, float(value)) for key, value in values.items()
    )
    return rung_of(name, reference=context.original.title, samples=samples, measurements=measured)


def _timed(
    name: str,
    run: Callable[[EmbedderContext], Rung],
    context: EmbedderContext,
    progress: Progress,
) -> Rung:
    progress(Step(stage=f"check {name}", item=name, done=0, total=0, unit="rungs"))
    start = perf_counter()
    try:
        rung = run(context)
    except (EngineError, ImageError, FloatingPointError) as failure:
        rung = Rung(name=name, status="failed", reason=str(failure))
    return replace(rung, seconds=round(perf_counter() - start, 3))
