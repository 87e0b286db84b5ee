"""Picture to pixels, as the original authors' code does it, with Pillow and numpy alone.

The one implementation: the export checks and the device both use it. Two habits of the
original are kept because the model was trained with them: transparency is dropped and not
blended, and an EXIF orientation is ignored (a photo that relies on it is seen lying).

Source: Meituan-AutoML/MobileVLM, mobilevlm/utils.py `process_images` and scripts/inference.py
`Image.open(file).convert("RGB")`; transformers' slow CLIPImageProcessor. Bit for bit equal to
these, but where a picture is 1 or 3 px high, which that processor takes for the channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mllm_export.errors import ImageError
from mllm_export.pixels import join_pixels
from mllm_export.spec import ImageInput, ImageSpec

Picture = str | Path | bytes | Image.Image
"""A file, the bytes of a file, or an opened picture."""

LIMIT_PIXELS = 100_000_000
"""Pictures with this many pixels or more are refused before they are decoded (300 MB as RGB)."""

LIMIT_SIDE_PX = 65_535
"""The longest side taken: what a JPEG can hold. A strip of it, S px wide, still fits a phone."""

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_STRIP_ROWS = 256


def preprocess_inputs(source: Picture, inputs: Sequence[ImageInput]) -> npt.NDArray[np.float32]:
    """A picture as the pixels of every input, in one array; see `mllm_export.pixels`.

    Raises: see `preprocess`.
    """
    picture = open_picture(source)
    return join_pixels([preprocess(picture, one.image) for one in inputs])


def preprocess(source: Picture, spec: ImageSpec) -> npt.NDArray[np.float32]:
    """A picture as pixels f32[1, 3, size_px, size_px].

    Raises: ImageError for what is not a whole picture, or is one of 100 megapixels or more.
    """
    picture = open_picture(source)
    fit = {"pad": _pad, "crop": _crop, "stretch": _stretch}[spec.fit]
    return _normalise(fit(picture, spec), spec)


def open_picture(source: Picture) -> Image.Image:
    """Decode to RGB: no EXIF turn, alpha dropped.

    Raises: see `preprocess`; the size is judged from the header.
    """
    name = "the picture" if isinstance(source, bytes | Image.Image) else str(source)
    with _as_image_errors(name), warnings.catch_warnings():
        # Pillow warns from 89 megapixels on; the limit here is our own.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        if isinstance(source, Image.Image):
            _check_size(source.size, name)
            return source.convert("RGB")
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
            _check_size(opened.size, name)
            return opened.convert("RGB")


@contextmanager
def _as_image_errors(name: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name} is missing; give the path of a picture") from None
    except UnidentifiedImageError as failure:
        raise ImageError(
            f"{name} is not a picture that Pillow can read; give a PNG, JPEG or WebP file"
        ) from failure
    except Image.DecompressionBombError as failure:
        raise ImageError(_too_large(name, str(failure))) from failure
    # Pillow's decoders raise a dozen types on broken data: OSError, SyntaxError, struct.error...
    except Exception as failure:
        raise ImageError(
            f"{name} cannot be decoded ({_one_line(failure)}); is the file whole?"
        ) from failure


def _one_line(failure: Exception) -> str:
    return " ".join(str(failure).split()) or type(failure).__name__


def _too_large(name: str, found: str) -> str:
    return (
        f"{name} is too large: {found}; the limit is under "
        f"{LIMIT_PIXELS // 1_000_000} megapixels and sides up to {LIMIT_SIDE_PX} px, "
        "make it smaller first"
    )


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageError(f"{name} is empty: {width} x {height} px")
    if width * height >= LIMIT_PIXELS or max(size) > LIMIT_SIDE_PX:
        raise ImageError(_too_large(name, f"{width} x {height} px"))


def _pad(picture: Image.Image, spec: ImageSpec) -> Image.Image:
    """Square of the longer side in the fill colour, the picture in its middle, then resized.

    The square itself, 20 times a panorama's own size, is never held: Pillow resizes rows first
    and columns after, so rows are resized strip by strip. Equal to the whole square bit for bit.

    Source: LLaVA `expand2square`; Pillow src/libImaging/Resample.c for the order of the passes.
    """
    width, height = picture.size
    side, size_px, resample = max(width, height), spec.size_px, _FILTERS[spec.resample]
    left, top = (side - width) // 2, (side - height) // 2
    narrow = Image.new("RGB", (size_px, side), spec.pad_rgb)
    for row in range(0, height, _STRIP_ROWS):
        rows = min(_STRIP_ROWS, height - row)
        strip = Image.new("RGB", (side, rows), spec.pad_rgb)
        strip.paste(picture.crop((0, row, width, row + rows)), (left, 0))
        narrow.paste(strip.resize((size_px, rows), resample), (0, top + row))
    return narrow.resize((size_px, size_px), resample)


def _crop(picture: Image.Image, spec: ImageSpec) -> Image.Image:
    """Shorter side resized to size_px, then the middle cut out.

    Source: transformers image_transforms.get_resize_output_image_size and center_crop.
    """
    width, height = picture.size
    size_px = spec.size_px
    longer = int(size_px * max(width, height) / min(width, height))
    if longer > LIMIT_SIDE_PX:
        raise ImageError(
            f"a picture of {width} x {height} px would be {longer} px long at a short side of "
            f"{size_px} px, the limit is {LIMIT_SIDE_PX}; cut it first"
        )
    size = (size_px, longer) if width <= height else (longer, size_px)
    resized = picture.resize(size, _FILTERS[spec.resample])
    left, top = (size[0] - size_px) // 2, (size[1] - size_px) // 2
    return resized.crop((left, top, left + size_px, top + size_px))


def _stretch(picture: Image.Image, spec: ImageSpec) -> Image.Image:
    """Both sides resized to size_px, whatever the shape."""
    return picture.resize((spec.size_px, spec.size_px), _FILTERS[spec.resample])


def _normalise(picture: Image.Image, spec: ImageSpec) -> npt.NDArray[np.float32]:
    """RGB bytes to (value / 255 - mean) / std, f32[1, 3, S, S].

    There are 256 byte values, so each channel is a look-up in a table of results.

    Source: transformers image_transforms: rescale multiplies by 1/255 in float64 and rounds to
    float32; normalize subtracts and divides in float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    values = np.asarray(picture)
    pixels = np.empty((1, 3, spec.size_px, spec.size_px), np.float32)
    for channel in range(3):
        table = (scaled - mean[channel]) / std[channel]
        pixels[0, channel] = table[values[..., channel]]
    return pixels
