"""Where a program leaves float16's range, found by running it on pictures, or ids, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mllm_export.export.mil_evaluator import Evaluator
from mllm_export.export.mil_program import read_program
from mllm_export.spec import ImageSpec

if TYPE_CHECKING:
    from mllm_export.export.graph import Graph
    from mllm_export.export.mil_program import Operation

_LIMIT = float(np.finfo(np.float16).max) / 2
"""Half of what float16 holds: other pictures than the probes reach further."""

_PICTURES = ("003", "014")
"""Of the reference's calibration pictures: a drawn scene and digits."""

_TEXTS = 4
"""Rows of ids that a text tower is run on."""


def overflowing(package: Path, graph: Graph) -> tuple[str, ...]:
    """Names, before their cast to float16, of the operations that leave the range on a probe."""
    evaluator = Evaluator(read_program(package), "float32")
    found: dict[str, None] = {}

    def note(operation: Operation, peak: float) -> None:
        if not peak <= _LIMIT:  # not a number counts too
            found[operation.name.removesuffix("_cast_fp16")] = None

    for given in _inputs(evaluator, graph):
        evaluator.outputs(given, note)
    return tuple(found)


def _inputs(evaluator: Evaluator, graph: Graph) -> Iterator[dict[str, npt.NDArray[Any]]]:
    if graph.images:
        for levels in zip(*(probes(image) for image in graph.images.values()), strict=True):
            pairs = zip(graph.images.items(), levels, strict=True)
            yield {name: levels_for(evaluator, image, at) for (name, image), at in pairs}
        return
    for name, shape in graph.inputs.items():
        count = prod(shape)
        # Every id of a small vocabulary, and evenly spread ones of a large.
        ids = np.linspace(0, graph.vocab - 1, _TEXTS * count).astype(np.int64)
        yield from ({name: row.reshape(shape)} for row in ids.reshape(_TEXTS, count))


def kept_in_float32(package: Path) -> tuple[str, ...]:
    """Names of the operations that the program computes in float32."""
    return tuple(
        operation.name
        for operation in read_program(package).operations
        if operation.type not in ("const", "cast")
        and any(result.type == "FLOAT32" for result in operation.results)
    )


def probes(image: ImageSpec) -> list[npt.NDArray[np.float32]]:
    """Black, white, and pictures. Shapes: f32[3, S, S] of 0 to 255 each."""
    from PIL import Image

    folder = files("mllm_export.export.reference") / "data" / "calibration"
    side = image.size_px
    flat = [np.full((3, side, side), level, np.float32) for level in (0, 255)]
    for name in _PICTURES:
        with (folder / f"{name}.png").open("rb") as file, Image.open(file) as picture:
            values = np.asarray(picture.convert("RGB").resize((side, side)), np.float32)
        flat.append(np.ascontiguousarray(values.transpose(2, 0, 1)))
    return flat


def levels_for(
    evaluator: Evaluator, image: ImageSpec, levels: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Levels f32[3, S, S] as the program's input f32[1, 3, S, S]."""
    if evaluator.program.image_inputs:
        return levels[None]
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (image.mean, image.std))
    return np.asarray((levels / 255 - mean) / std, np.float32)[None]
