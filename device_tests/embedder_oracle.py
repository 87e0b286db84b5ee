"""What an encoder alone is held against: the original itself, or what a bundle keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mllm_export.device_tests.controls import blank, shuffled
from mllm_export.device_tests.distributions import jensen_shannon, log_softmax
from mllm_export.device_tests.pictures import Picture, ladder, scenes
from mllm_export.device_tests.questions import NASTY, PLAIN
from mllm_export.device_tests.reference import Floats

if TYPE_CHECKING:
    from mllm_export.checkpoint import Checkpoint
    from mllm_export.device_tests.references._embedders import EmbedderOriginal
    from mllm_export.embedder import EmbedderSpec
    from mllm_export.export.embedder_parts import EmbedderReading

SCENES = 6
LABELS = ("a red circle", "a blue square", "a dog", "two birds on a wire", "7")
_LONG = "word " * 200

Score = Callable[[Picture, Sequence[str]], Floats]
"""Scores of a picture with each of some texts. Shapes: f32[L]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageCase:
    """Pixels of the original's processor, and what the original makes of them."""

    pixels: Floats
    expected: Floats
    patches: Floats
    """f32[N, D]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextCase:
    """A text and what the original makes of it."""

    text: str
    expected: Floats


class EmbedderOracle(Protocol):
    """Expected values."""

    title: str

    @property
    def pictures(self) -> Sequence[Picture]:
        """What the controls replace, in order."""

    def pixel_cases(self) -> list[tuple[Picture, Floats]]:
        """Pictures and their pixels f32[1, 3, S, S]."""

    def prompt_cases(self) -> list[tuple[str, list[int]]]:
        """Texts and their ids, padded; none without a text tower."""

    def image_cases(self) -> list[ImageCase]:
        """For the image tower."""

    def text_cases(self) -> list[TextCase]:
        """For the text tower."""

    def movements(self) -> Mapping[str, float]:
        """How far each control moves the original's probabilities, in nats."""


class LiveEmbedder:
    """The original itself; see `EmbedderOracle`."""

    def __init__(self, checkpoint: Checkpoint, reading: EmbedderReading) -> None:
        """Nothing runs before it is asked for, but all weights are read now."""
        from mllm_export.device_tests.references._embedders import load_original

        self._checkpoint = checkpoint
        original = load_original(checkpoint)
        self.original = original
        self.reading = reading
        self.title = original.title

    @cached_property
    def pictures(self) -> Sequence[Picture]:
        """A few drawn scenes."""
        return list(scenes(SCENES))

    def holding(self, weights: Mapping[str, Floats]) -> EmbedderOriginal:
        """The same original with other weights, by published name."""
        from mllm_export.device_tests.references._embedders import load_original

        return load_original(self._checkpoint, weights)

    def pixels(self, picture: Picture) -> Floats:
        """Through the original's processor."""
        with picture.open() as image:
            return self.original.pixels(image)

    def pixel_cases(self) -> list[tuple[Picture, Floats]]:
        """The whole ladder of pictures."""
        return [(picture, self.pixels(picture)) for picture in ladder()]

    def prompt_cases(self) -> list[tuple[str, list[int]]]:
        """Plain and nasty texts, labels, one that is too long."""
        if self.reading.spec.text is None:
            return []
        texts = (*PLAIN, *NASTY, *templated(self.reading.spec, LABELS), _LONG)
        return [(text, self.original.ids(text)) for text in texts]

    def image_cases(self) -> list[ImageCase]:
        """Scenes, noise, one colour."""
        pixels = [self.pixels(picture) for picture in self.pictures]
        noise = np.random.default_rng(11).standard_normal(pixels[0].shape).astype(np.float32)
        return [self.image_case(p) for p in (*pixels, noise, np.full_like(noise, 0.25))]

    def image_case(self, pixels: Floats) -> ImageCase:
        """One of them."""
        return image_case(self.original, pixels)

    def text_cases(self) -> list[TextCase]:
        """Labels, no text, one that is too long."""
        if self.reading.spec.text is None:
            return []
        texts = templated(self.reading.spec, (*LABELS, "", _LONG))
        return [self.text_case(text) for text in texts]

    def text_case(self, text: str) -> TextCase:
        """One of them."""
        return text_case(self.original, text)

    def movements(self) -> Mapping[str, float]:
        """On the scenes."""
        texts = templated(self.reading.spec, LABELS)
        return movements(self.scores, self.pictures, texts)

    def scores(self, picture: Picture, texts: Sequence[str]) -> Floats:
        """The original's scores. Shapes: f32[L]."""
        original = self.original
        image = original.embed_image(self.pixels(picture))
        rows = np.stack([original.embed_text(original.ids(text)) for text in texts])
        rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        cosine = rows @ (image / np.linalg.norm(image))
        return np.asarray(original.scale * cosine + original.bias, np.float32)


def image_case(original: EmbedderOriginal, pixels: Floats) -> ImageCase:
    """What an original makes of pixels f32[1, 3, S, S]."""
    return ImageCase(
        pixels=pixels,
        expected=original.embed_image(pixels),
        patches=original.embed_patches(pixels),
    )


def text_case(original: EmbedderOriginal, text: str) -> TextCase:
    """What an original makes of a text."""
    return TextCase(text=text, expected=original.embed_text(original.ids(text)))


def templated(spec: EmbedderSpec, labels: Sequence[str]) -> list[str]:
    """Each label in the model's own sentence."""
    return [spec.template.replace("{}", label) for label in labels]


def movements(score: Score, pictures: Sequence[Picture], texts: Sequence[str]) -> dict[str, float]:
    """Mean distance of the probabilities when each picture is blank, another, or shuffled."""
    swapped = dict(zip((p.name for p in pictures), (*pictures[1:], pictures[0]), strict=True))
    changes: Mapping[str, Callable[[Picture], Picture]] = {
        "blank": blank, "swapped": lambda p: swapped[p.name], "shuffled": shuffled,
    }  # fmt: skip
    true = [score(picture, texts) for picture in pictures]
    found: dict[str, float] = {}
    for name, change in changes.items():
        moved = [
            jensen_shannon(log_softmax(one[None]), log_softmax(score(change(p), texts)[None]))[0]
            for p, one in zip(pictures, true, strict=True)
        ]
        found[name] = float(np.mean(moved))
    return found
