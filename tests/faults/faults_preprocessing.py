"""Faults between a picture and its pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from fault import Fault, Plant
from fault_bench import Bench
from PIL import Image, ImageOps

from mllm_export.bundle import Bundle
from mllm_export.runtimes import preprocess as code
from mllm_export.spec import ImageSpec, ModelSpec

PIXELS = ("pixels",)


def image_spec(**changed: object) -> Plant:
    """The bundle says something else of how pictures are prepared."""

    def change(model: ModelSpec) -> ModelSpec:
        first, *others = model.encoders
        image = replace(first.image, **changed)
        return replace(model, encoders=(replace(first, image=image), *others))

    return lambda bench, _: bench.with_model(change)


def patched(name: str, make: Callable[[Callable], Callable]) -> Plant:
    """A function of the runtime's preprocessing does something else."""

    def plant(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
        patch.setattr(code, name, make(getattr(code, name)))
        return bench.honest

    return plant


def bgr(normalise: Callable) -> Callable:
    def made(picture: Image.Image, spec: ImageSpec) -> np.ndarray:
        return normalise(Image.merge("RGB", picture.split()[::-1]), spec)

    return made


def turned(open_picture: Callable) -> Callable:
    def made(source: object) -> Image.Image:
        upright = ImageOps.exif_transpose(source) if isinstance(source, Image.Image) else source
        return open_picture(upright)

    return made


def blended(open_picture: Callable) -> Callable:
    """Transparent places become white."""

    def made(source: object) -> Image.Image:
        if isinstance(source, Image.Image) and source.mode in {"RGBA", "LA"}:
            white = Image.new("RGBA", source.size, "white")
            return Image.alpha_composite(white, source.convert("RGBA")).convert("RGB")
        return open_picture(source)

    return made


def not_antialiased(_: Callable) -> Callable:
    """Cubic interpolation of four neighbours however much smaller the picture gets."""

    def made(picture: Image.Image, spec: ImageSpec) -> Image.Image:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), spec.pad_rgb)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        size = (spec.size_px, spec.size_px)
        scale = side / spec.size_px
        matrix = (scale, 0, 0, 0, scale, 0)
        return square.transform(
            size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC
        )

    return made


def off_centre(_: Callable) -> Callable:
    """The picture in the corner of the square, not in its middle."""

    def made(picture: Image.Image, spec: ImageSpec) -> Image.Image:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), spec.pad_rgb)
        square.paste(picture, (0, 0))
        return square.resize((spec.size_px, spec.size_px), Image.Resampling.BICUBIC)

    return made


def bytes_kept(normalise: Callable) -> Callable:
    """255 times as large: the division left out."""
    return lambda picture, spec: normalise(picture, spec) * np.float32(255)


def whole_numbers(normalise: Callable) -> Callable:
    return lambda picture, spec: np.round(normalise(picture, spec))


def opened(make: Callable[[Callable], Callable]) -> Plant:
    return patched("open_picture", make)


def other_size(prepare: Callable) -> Callable:
    """Half the size, scaled up again."""

    def halved(source: object, spec: ImageSpec) -> np.ndarray:
        small = prepare(source, replace(spec, size_px=spec.size_px // 2))
        return np.ascontiguousarray(small.repeat(2, axis=2).repeat(2, axis=3))

    return halved


def fault(name: str, plant: Plant, quick: bool = False) -> Fault:
    return Fault(name=name, stage="preprocessing", rungs=PIXELS, plant=plant, quick=quick)


HALF = (0.5, 0.5, 0.5)

FAULTS = (
    fault("channel order", patched("_normalise", bgr), quick=True),
    fault("mean and std of another model", image_spec(mean=HALF, std=HALF), quick=True),
    fault("resize kernel", image_spec(resample="bilinear"), quick=True),
    fault("no antialiasing", patched("_pad", not_antialiased)),
    fault("crop in place of pad", image_spec(fit="crop")),
    fault("stretch in place of pad", image_spec(fit="stretch")),
    fault("pad colour", image_spec(pad_rgb=(0, 0, 0))),
    fault("picture not in the middle", patched("_pad", off_centre)),
    fault("EXIF turn applied", opened(turned), quick=True),
    fault("transparency blended", opened(blended)),
    fault("pixels not divided by 255", patched("_normalise", bytes_kept)),
    fault("pixels as whole numbers", patched("_normalise", whole_numbers)),
    fault("another input size", patched("preprocess", other_size)),
)
