"""Calibration pictures as the tower of a model gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.samples import read_calibration
from mllm_export.progress import Progress, Step
from mllm_export.runtimes.preprocess import preprocess_inputs
from mllm_export.spec import ModelSpec

PICTURES = 32
"""The most that are looked at: ranges of activations hardly move after a dozen."""


def pixels_stage(spec: ModelSpec, path: Path | None, out: Path, progress: Progress) -> None:
    """Write the pictures of a calibration set to a .npy file f32[N, 3, S, S].

    Raises: CheckError, see `read_calibration`.
    """
    np.save(out, calibration_pixels(spec, path, progress))


def calibration_pixels(spec: ModelSpec, path: Path | None, progress: Progress) -> Floats:
    """The first pictures of a calibration set, through the device's own preprocessing.

    Shapes: f32[N, 3, S, S]; a picture of several tiles gives as many.
    """
    pictures = list(read_calibration(path).pictures.values())[:PICTURES]
    found = []
    for at, picture in enumerate(pictures):
        progress(
            Step(
                stage="calibration",
                item=picture.name,
                done=at,
                total=len(pictures),
                unit="pictures",
            )
        )
        with picture.open() as image:
            found.append(preprocess_inputs(image, spec.vision.image_inputs))
    return np.concatenate(found)
