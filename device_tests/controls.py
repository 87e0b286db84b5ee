"""Pictures that take the picture away: one colour, another picture, its pieces in disorder."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mllm_export.device_tests.pictures import Picture, stored_picture

_PIECES = 6
"""Per side: large enough to break every scene, small enough to keep colours in place nowhere."""


def blank(picture: Picture) -> Picture:
    """The picture's mean colour everywhere."""
    values = _pixels(picture)
    mean = values.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    return _stored(f"{picture.name}, one colour", np.broadcast_to(mean, values.shape))


def shuffled(picture: Picture) -> Picture:
    """The picture cut into 6 by 6 pieces, put back in another order; the margin is cut off."""
    values = _pixels(picture)
    high, wide = (max(1, side // _PIECES) for side in values.shape[:2])
    rows, columns = values.shape[0] // high, values.shape[1] // wide
    cut = values[: rows * high, : columns * wide].reshape(rows, high, columns, wide, 3)
    pieces = cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, high, wide, 3)
    mixed = pieces[np.random.default_rng(5).permutation(len(pieces))]
    whole = mixed.reshape(rows, columns, high, wide, 3).transpose(0, 2, 1, 3, 4)
    return _stored(f"{picture.name}, in pieces", whole.reshape(rows * high, columns * wide, 3))


def _pixels(picture: Picture) -> np.ndarray:
    with picture.open() as opened:
        return np.asarray(opened.convert("RGB"))


def _stored(name: str, values: np.ndarray) -> Picture:
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(data, "PNG")
    return stored_picture(name, data.getvalue())
