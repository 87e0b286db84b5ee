"""Preprocessing of CLIP-like towers, from preprocessor_config.json or the published constants."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mllm_export.config import Config, read_json_object
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.spec import ImageSpec

Fit = Literal["pad", "crop", "stretch"]
Triple = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
"""Source: openai/CLIP, clip/clip.py, Normalize."""
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
"""Source: openai/CLIP, clip/clip.py, Normalize."""

_RESAMPLE: dict[int, Literal["lanczos", "bilinear", "bicubic"]] = {
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}
"""Pillow's numbers. Source: PIL.Image.Resampling."""


def vision_section(config: Config) -> Config:
    """The vision tower's own object: of a file for image and text, its `vision_config`."""
    return config.section("vision_config") if "vision_config" in config else config


def fit_of(config: Config) -> Fit:
    """How a picture that is not square is fitted. Source: LLaVA, llava/mm_utils.py.

    Raises: UnsupportedModelError for 'anyres', which cuts one picture into several tiles.
    """
    ratio = config.text("image_aspect_ratio", "")
    if ratio == "anyres":
        raise UnsupportedModelError(
            f"{config.file}: image_aspect_ratio 'anyres' needs a tiling that is not there yet"
        )
    return "pad" if ratio == "pad" else "crop"


def pad_colour(mean: Triple) -> tuple[int, int, int]:
    """The mean colour, truncated as LLaVA's expand2square truncates it."""
    red, green, blue = (int(255 * value) for value in mean)
    return red, green, blue


def image_spec(
    size_px: int, fit: Fit, mean: Triple = CLIP_MEAN, std: Triple = CLIP_STD
) -> ImageSpec:
    """CLIP's preprocessing at one size."""
    return ImageSpec(
        size_px=size_px, fit=fit, resample="bicubic", mean=mean, std=std, pad_rgb=pad_colour(mean)
    )


def read_image_spec(folder: Path, fit: Fit) -> ImageSpec | None:
    """preprocessor_config.json of a tower's folder, or None where there is none.

    Raises: CheckpointError for steps that this preprocessing does not have.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    config = Config(read_json_object(file), str(file))
    for step in ("do_resize", "do_normalize"):
        if not config.flag(step, True):
            raise CheckpointError(f"{file}: {step} is false; such a preprocessing is not known")
    # SigLIP's processor never crops: it resizes both sides, and so keeps what it was given.
    crops = config.flag("do_center_crop", "crop_size" in config)
    size = _side(config, "size", "shortest_edge" if crops else "height")
    crop = _side(config, "crop_size", "height") if crops else size
    if size != crop:
        raise CheckpointError(f"{file}: size {size} and crop_size {crop} differ; needed: equal")
    if fit == "crop" and not crops:
        fit = "stretch"
    resample = _RESAMPLE.get(config.integer("resample", 3))
    if resample is None:
        raise CheckpointError(f"{file}: resample {config.integer('resample')} is not known")
    mean, std = (_triple(config, key) for key in ("image_mean", "image_std"))
    return ImageSpec(
        size_px=size, fit=fit, resample=resample, mean=mean, std=std, pad_rgb=pad_colour(mean)
    )


def _side(config: Config, key: str, inner: str) -> int:
    # transformers before 4.26 wrote a bare number, later versions an object.
    try:
        return config.positive(key)
    except CheckpointError:
        return config.section(key).positive(inner)


def _triple(config: Config, key: str) -> Triple:
    values = config.numbers(key)
    if len(values) != 3:
        raise CheckpointError(f"{config.file}: key '{key}' has {len(values)} values, needed: 3")
    return values[0], values[1], values[2]
