"""Tower and projector through Core ML, on a Mac."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mllm_export.errors import EngineError
from mllm_export.pixels import tiles_of
from mllm_export.runtimes.engines import Floats, GraphRun, require_shape
from mllm_export.spec import IMAGE_EMBEDS, ImageSpec, ModelSpec

UNITS_VARIABLE = "MLLM_COREML_UNITS"
"""Environment variable that chooses where Core ML computes."""

UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")
"""Names of coremltools.ComputeUnit, the default first."""


class CoremlTower:
    """One program: pixels f32[1, 3, S, S] to embeddings f32[T, D]."""

    def __init__(self, path: Path, spec: ModelSpec, model: Any, takes_image: bool) -> None:
        """`model` is coremltools' MLModel, or what predicts as one."""
        self._path = path
        self._spec = spec
        self._model = model
        self._takes_image = takes_image

    def embed(self, pixels: Floats) -> Floats:
        """Pixels f32[N, 3, S, S] to embeddings f32[N * T, D], tile after tile.

        Raises: EngineError for another shape or type, and for embeddings with NaN or Inf.
        """
        if self._model is None:
            raise EngineError("the session is closed; load the bundle again")
        tiles = tiles_of(pixels, self._spec.vision.input_shapes)
        embeddings = np.concatenate([self._run(tile) for tile in tiles])
        if not np.isfinite(embeddings).all():
            raise EngineError(
                f"{self._path}: the tower gave NaN or Inf for this image; "
                "are its pixels normalised, and did the bundle pass its checks?"
            )
        return embeddings

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._model = None

    def _run(self, tile: Mapping[str, Floats]) -> Floats:
        given: Mapping[str, Any] = tile
        if self._takes_image:
            inputs = self._spec.vision.image_inputs
            given = {one.name: to_picture(tile[one.name][0], one.image) for one in inputs}
        made = np.asarray(self._model.predict(dict(given))[IMAGE_EMBEDS], np.float32)
        shape = (self._spec.image_tokens, self._spec.decoder.width)
        if made.shape != shape:
            raise EngineError(
                f"{self._path}: the tower gives {list(made.shape)}, the spec needs {list(shape)}; "
                "is the tower another model's?"
            )
        return made


class CoremlEngine:
    """Opens .mlpackage folders."""

    def open(self, path: Path, spec: ModelSpec, threads: int) -> CoremlTower:
        """Raises: EngineError away from macOS, or when Core ML refuses the package."""
        del threads  # Core ML chooses its own
        model = _load(path, compute_units())
        return CoremlTower(path, spec, model, takes_picture(model))

    def open_graph(self, path: Path, image: ImageSpec | None, threads: int) -> GraphRun:
        """Raises: EngineError away from macOS, or when Core ML refuses the package."""
        del threads
        return graph_run(path, _load(path, compute_units()), image)


def graph_run(path: Path, model: Any, image: ImageSpec | None) -> GraphRun:
    """One prediction of `model`, coremltools' MLModel or what predicts as one."""
    description = model.get_spec().description
    (given,) = description.input
    names = [port.name for port in description.output]
    picture = image if takes_picture(model) else None
    needed = tuple(int(side) for side in given.type.multiArrayType.shape)

    def run(values: npt.NDArray[Any]) -> dict[str, Floats]:
        fed: Any = values.astype(np.int32) if image is None else values
        if picture is None:
            require_shape(path, given.name, values.shape, needed)
        else:
            fed = to_picture(values[0], picture)
        made = model.predict({given.name: fed})
        return {name: np.asarray(made[name], np.float32) for name in names}

    return run


def takes_picture(model: Any) -> bool:
    """Whether the program's input is an ImageType."""
    ports = model.get_spec().description.input
    return bool(ports[0].type.WhichOneof("Type") == "imageType")


def compute_units() -> str:
    """What the environment asks for. Raises: EngineError for a name that Core ML lacks."""
    asked = os.environ.get(UNITS_VARIABLE, UNITS[0])
    if asked not in UNITS:
        raise EngineError(f"{UNITS_VARIABLE} is '{asked}', known: {', '.join(UNITS)}")
    return asked


def to_picture(tile: Floats, image: ImageSpec) -> Any:
    """Normalised pixels f32[3, S, S] as the picture they were made of; exact, since it had 8 bits.

    Returns a PIL image, as coremltools takes pictures.
    """
    from PIL import Image

    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (image.mean, image.std))
    levels = ((tile * std + mean) * 255).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


def _load(path: Path, units: str) -> Any:
    if sys.platform != "darwin":
        raise EngineError(
            f"{path}: Core ML runs on Apple's systems alone, this is {sys.platform}; "
            "run the bundle on a Mac, or check it here with 'mllm-export check'"
        )
    try:
        import coremltools
    except ImportError as failure:
        raise EngineError(
            f"{path}: Core ML is reached through coremltools; install it with: "
            "pip install 'coremltools>=9,<10'"
        ) from failure
    try:
        return coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit[units])
    # Core ML's refusals come as RuntimeError, NSError texts and more.
    except Exception as failure:
        reason = " ".join(str(failure).split())[:300]
        raise EngineError(f"{path}: Core ML refuses the tower ({reason})") from failure


ENGINE = CoremlEngine()
