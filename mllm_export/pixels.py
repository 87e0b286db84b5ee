"""A picture as one array, whatever number of preprocessings the vision graph takes.

Everything between preprocessing and graph (caches, calibration files, golden values, checks)
holds a picture as one array and need not know how many inputs it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from mllm_export.errors import EngineError

Floats = npt.NDArray[np.float32]
Shape = tuple[int, ...]


def pixels_shape(shapes: Sequence[Shape]) -> Shape:
    """Shape of one tile, from those of the inputs f32[1, 3, S, S], in their order.

    [3, S, S] for one input; [3 * inputs, S, S] for several of one size; else all in one row.
    """
    if len({shape[2:] for shape in shapes}) == 1:
        return (sum(shape[1] for shape in shapes), *shapes[0][2:])
    return (sum(prod(shape) for shape in shapes),)


def join_pixels(parts: Sequence[Floats]) -> Floats:
    """Inputs f32[N, 3, S, S] as one array; see `pixels_shape`."""
    if len(parts) == 1:
        return parts[0]
    tile = pixels_shape([(1, *part.shape[1:]) for part in parts])
    flat = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    return flat.reshape(-1, *tile)


def tiles_of(pixels: Floats, shapes: Mapping[str, Shape]) -> list[dict[str, Floats]]:
    """What a graph is fed, tile after tile: f32[1, 3, S, S] for each input, by name.

    Raises: see `split_pixels`.
    """
    parts = split_pixels(pixels, shapes)
    return [
        {name: np.ascontiguousarray(part[at : at + 1]) for name, part in parts.items()}
        for at in range(len(pixels))
    ]


def split_pixels(pixels: Floats, shapes: Mapping[str, Shape]) -> dict[str, Floats]:
    """Tiles as `join_pixels` made them, back to the inputs by name, f32[N, 3, S, S] each.

    `shapes` are the inputs' [1, 3, S, S] by name, in their order.

    Raises: EngineError for another shape or type.
    """
    tile = pixels_shape(list(shapes.values()))
    if pixels.shape[1:] != tile or not len(pixels) or pixels.dtype != np.float32:
        raise EngineError(
            f"pixels are {pixels.dtype}{list(pixels.shape)}, "
            f"needed: float32[N, {', '.join(str(side) for side in tile)}]"
        )
    if len(shapes) == 1:
        return dict.fromkeys(shapes, pixels)
    flat = pixels.reshape(len(pixels), -1)
    found: dict[str, Floats] = {}
    start = 0
    for name, shape in shapes.items():
        stop = start + prod(shape)
        found[name] = np.ascontiguousarray(flat[:, start:stop]).reshape(-1, *shape[1:])
        start = stop
    return found
