"""Whether llama.cpp's own multimodal library computes an mmproj file's tower rightly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mllm_export.bundle import Manifest
from mllm_export.checkpoint import Asked, Checkpoint
from mllm_export.device_tests.distributions import cosines
from mllm_export.device_tests.pictures import Picture, scenes
from mllm_export.device_tests.reference import REFERENCES, Floats
from mllm_export.progress import Progress, Step
from mllm_export.records import record

WORST_COSINE = 0.999
"""A right file measures 0.99989 and more, from tanh GELU and float16 convolutions; the least
wrong one that was met 0.89. Source: measurements on llama-cpp-python 0.3.36."""

_PICTURES = 2


@record
class MmprojVerdict:
    """What the library made of the file."""

    worst_cosine: float
    """Over all tokens of all pictures, against the original in float32."""
    refused: str = ""
    """The library's own words when it gave no embeddings."""

    @property
    def passed(self) -> bool:
        """Whether the file may stay in a bundle."""
        return not self.refused and self.worst_cosine >= WORST_COSINE

    def sentence(self) -> str:
        """What was found and what to do."""
        if self.passed:
            return f"mmproj.gguf: worst-token cosine {self.worst_cosine:.5f} through llama.cpp"
        found = self.refused or (
            f"the pinned llama.cpp computes it with a worst-token cosine of "
            f"{self.worst_cosine:.3f} (limit {WORST_COSINE})"
        )
        return f"mmproj.gguf was left out: {found}; tower.onnx is the one to use"


def mmproj_stage(
    mmproj: Path,
    manifest: Manifest,
    source: tuple[Path, Asked],
    progress: Progress,
) -> MmprojVerdict:
    """Measure `mmproj` against the original on drawn pictures of the tower's own size."""
    from mllm_export.errors import CheckError
    from mllm_export.export.formats.mmproj_measure import measure_mmproj

    reference = REFERENCES[manifest.model.family](Checkpoint(*source))
    size_px = manifest.model.encoders[0].image.size_px
    worst = 1.0
    for number, picture in enumerate(scenes(_PICTURES)):
        progress(_step(number, picture))
        with picture.open() as opened:
            image = opened.convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC)
        expected = reference.embed(reference.pixels(image))[0]
        try:
            found = measure_mmproj(mmproj, np.asarray(image))
        except CheckError as failure:
            return MmprojVerdict(worst_cosine=0.0, refused=str(failure))
        worst = min(worst, _worst(expected, found))
    return MmprojVerdict(worst_cosine=worst)


def _worst(expected: Floats, found: Floats) -> float:
    """The least cosine over tokens; 0 for another shape or NaN. Shapes: both f32[T, D]."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return 0.0
    return float(cosines(expected, found).min())


def _step(number: int, picture: Picture) -> Step:
    return Step(
        stage="check mmproj", item=picture.name, done=number, total=_PICTURES, unit="pictures"
    )
