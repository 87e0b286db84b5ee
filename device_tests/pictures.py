"""Pictures drawn by rule: the ladder of sizes and modes, and scenes to ask about."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ORIENTATION = 0x0112
"""EXIF tag of how a camera was held. Source: EXIF 2.3, section 4.6.4."""

SIZES = (
    (336, 336), (640, 480), (480, 640), (1024, 768), (337, 335), (53, 47), (17, 310), (301, 12),
    (4, 5), (1, 2),
)  # fmt: skip
"""Width and height in px: as large as the tower takes, larger, smaller, odd, thin, hardly any.

Squares of 1 and 3 px are left out: transformers takes their rows for channels.
"""

MODES = ("1", "L", "LA", "P", "RGBA", "I;16", "CMYK")
TURNS = (3, 6, 8)
"""EXIF orientations of a camera held upside down, and on either side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture by name; opened anew each time, as a program would open a file."""

    name: str
    open: Callable[[], Image.Image]


def file_picture(name: str, path: Path) -> Picture:
    """A picture that is a file."""
    return Picture(name=name, open=lambda: Image.open(path))


def stored_picture(name: str, data: bytes) -> Picture:
    """A picture that is the bytes of a file."""
    return Picture(name=name, open=lambda: Image.open(io.BytesIO(data)))


def ladder() -> Iterator[Picture]:
    """Every size in RGB, every mode and every EXIF turn at one size."""
    for number, (width, height) in enumerate(SIZES):
        yield _stored(f"{width}x{height}", _texture(width, height, number), "PNG")
    base = _texture(200, 131, 100)
    for mode in MODES:
        yield _stored(f"mode {mode}", _in_mode(base, mode), "TIFF" if mode == "CMYK" else "PNG")
    yield _stored("palette with transparency", _transparent_palette(base), "PNG")
    yield _stored("JPEG", base, "JPEG")
    for turn in TURNS:
        exif = Image.Exif()
        exif[ORIENTATION] = turn
        yield _stored(f"EXIF orientation {turn}", base, "JPEG", exif.tobytes())


def scenes(count: int, side: int = 336) -> Iterator[Picture]:
    """Coloured shapes on a textured ground; the same count gives the same pictures."""
    for number in range(count):
        rng = np.random.default_rng([7, number])
        width, height = side, side - int(rng.integers(0, side // 3))
        picture = _texture(width, height, 200 + number, contrast=40)
        pen = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(2, 6))):
            _draw_shape(pen, rng, width, height)
        yield _stored(f"scene {number}", picture, "PNG")


def _draw_shape(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int
) -> None:
    x, y = int(rng.integers(0, width * 3 // 4)), int(rng.integers(0, height * 3 // 4))
    size = int(rng.integers(width // 8, width // 3))
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    box = (x, y, x + size, y + size)
    if rng.integers(2):
        pen.ellipse(box, fill=(red, green, blue))
    else:
        pen.rectangle(box, fill=(red, green, blue))


def _texture(width: int, height: int, seed: int, contrast: int = 127) -> Image.Image:
    """Waves, a hard edge and noise: what resampling and colour handling can get wrong."""
    rng = np.random.default_rng([3, seed])
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + 3 * c) + y / (7 + 2 * c)) for c in range(3)]
    edge = np.where(x * height > y * width, 0.4, -0.4)
    noise = rng.uniform(-0.3, 0.3, (height, width, 3))
    planes = np.stack(waves, axis=-1) * 0.5 + edge[..., None] + noise
    return Image.fromarray(np.clip(128 + contrast * planes, 0, 255).astype(np.uint8))


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        wide = np.asarray(picture.convert("L"), np.uint16) * 7
        return Image.fromarray(wide)
    if mode in {"LA", "RGBA"}:
        made = picture.convert(mode)
        made.putalpha(picture.convert("L").point(lambda value: 255 - value))
        return made
    return picture.convert(mode)


def _transparent_palette(picture: Image.Image) -> Image.Image:
    made = picture.convert("P")
    made.info["transparency"] = 3
    return made


def _stored(name: str, picture: Image.Image, kind: str, exif: bytes = b"") -> Picture:
    data = io.BytesIO()
    if exif:
        picture.save(data, kind, exif=exif)
    else:
        picture.save(data, kind)
    return stored_picture(name, data.getvalue())
