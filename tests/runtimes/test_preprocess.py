"""Pixels equal to the original processor's, and what is refused before it is decoded."""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from mllm_export.errors import ImageError
from mllm_export.runtimes.preprocess import LIMIT_SIDE_PX, open_picture, preprocess
from mllm_export.spec import ImageSpec

SPEC = ImageSpec(
    size_px=336,
    fit="pad",
    resample="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    pad_rgb=(122, 116, 104),
)
SIZES = [
    (336, 336),
    (337, 335),
    (640, 480),
    (480, 640),
    (1, 1),
    (3, 3),
    (1, 2),
    (2, 1),
    (2, 2),
    (3, 2),
    (5, 4000),
    (4000, 5),
    (1000, 999),
    (257, 1031),
    (1031, 257),
    (24, 24),
    (1500, 700),
]
MODES = ["RGB", "L", "LA", "P", "RGBA", "I;16", "I", "F", "CMYK", "1", "YCbCr", "HSV", "PA", "LAB"]


def expand2square(picture: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    """As in LLaVA's mm_utils: the whole square, then the picture pasted into it."""
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    square = Image.new(picture.mode, (side, side), fill)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def original(picture: Image.Image, spec: ImageSpec) -> np.ndarray:
    """LLaVA's process_images with transformers' slow processor.

    Told where the channels are, for it takes a picture 1 or 3 px high for one channel first.
    """
    processor = CLIPImageProcessor(
        size={"shortest_edge": spec.size_px},
        crop_size={"height": spec.size_px, "width": spec.size_px},
        image_mean=spec.mean,
        image_std=spec.std,
    )
    picture = picture.convert("RGB")
    if spec.fit == "pad":
        picture = expand2square(picture, tuple(int(value * 255) for value in spec.mean))
    return processor.preprocess(picture, return_tensors="np", input_data_format="channels_last")[
        "pixel_values"
    ]


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    draw = np.random.default_rng(size[0] * 7919 + size[1])
    if mode == "I;16":
        values = draw.integers(0, 1 << 16, size[::-1], np.uint16)
        return Image.fromarray(values)
    if mode in {"LA", "RGBA"}:
        channels = draw.integers(0, 256, (*size[::-1], len(mode)), np.uint8)
        return Image.fromarray(channels, mode)
    picture = Image.fromarray(draw.integers(0, 256, (*size[::-1], 3), np.uint8))
    if mode == "PA":
        return picture.convert("P").convert("PA")
    if mode == "LAB":
        return Image.frombytes("LAB", size, picture.tobytes())
    return picture if mode == "RGB" else picture.convert(mode)


RIBBONS = {(5, 4000), (4000, 5)}
SHAPES = [("pad", size) for size in SIZES] + [("crop", s) for s in SIZES if s not in RIBBONS]


@pytest.mark.parametrize(("fit", "size"), SHAPES, ids=lambda value: str(value).replace(", ", "x"))
def test_pixels_equal_the_slow_processor_at_every_shape(
    fit: Literal["pad", "crop"], size: tuple[int, int]
) -> None:
    spec = replace(SPEC, fit=fit)
    picture = noise(size)
    np.testing.assert_array_equal(preprocess(picture, spec), original(picture, spec))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(50, 31), (400, 700)], ids=["small", "large"])
def test_pixels_equal_the_slow_processor_in_every_mode(size: tuple[int, int], mode: str) -> None:
    picture = noise(size, mode)
    np.testing.assert_array_equal(preprocess(picture, SPEC), original(picture, SPEC))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif", "tiff"])
def test_a_file_its_bytes_and_the_picture_give_the_same_pixels(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"picture.{kind}"
    noise((90, 61)).save(path)
    with Image.open(path) as opened:
        wanted = original(opened, SPEC)
        np.testing.assert_array_equal(preprocess(opened, SPEC), wanted)
    np.testing.assert_array_equal(preprocess(path, SPEC), wanted)
    np.testing.assert_array_equal(preprocess(str(path), SPEC), wanted)
    np.testing.assert_array_equal(preprocess(path.read_bytes(), SPEC), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_turn_is_ignored_as_in_the_original(tmp_path: Path, orientation: int) -> None:
    plain, turned = tmp_path / "plain.png", tmp_path / "turned.png"
    picture = noise((90, 61))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(plain)
    picture.save(turned, exif=exif)
    np.testing.assert_array_equal(preprocess(turned, SPEC), preprocess(plain, SPEC))


def test_the_order_pad_then_resize_matters() -> None:
    """The check above must fail for the order llama.cpp uses: resize to fit, then pad."""
    picture = noise((640, 480))
    fitted = picture.resize((336, 252), Image.Resampling.BICUBIC)
    other = preprocess(expand2square(fitted, SPEC.pad_rgb), SPEC)
    assert np.abs(other - original(picture, SPEC)).max() > 0.05


def test_stretch_resizes_both_sides() -> None:
    picture = noise((50, 31))
    wanted = original(picture.resize((336, 336), Image.Resampling.BICUBIC), SPEC)
    np.testing.assert_array_equal(preprocess(picture, replace(SPEC, fit="stretch")), wanted)


def test_pixels_are_one_float32_tile() -> None:
    pixels = preprocess(noise((50, 31)), SPEC)
    assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == (
        (1, 3, 336, 336),
        np.float32,
        True,
    )


def png(size: tuple[int, int]) -> bytes:
    """A PNG that claims `size`; its one line of data is not looked at."""
    data = io.BytesIO()
    Image.new("L", (1, 1)).save(data, "PNG")
    whole = bytearray(data.getvalue())
    whole[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    whole[29:33] = zlib.crc32(bytes(whole[12:29])).to_bytes(4, "big")
    return bytes(whole)


@pytest.mark.parametrize(
    "size", [(10000, 10000), (12000, 9000), (20000, 20000), (70000, 2), (2, 70000)]
)
def test_a_picture_over_the_limit_is_refused_from_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"is too large: .*100 megapixels") as caught:
        open_picture(png(size))
    assert "\n" not in str(caught.value)


def test_a_picture_under_the_limit_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="is the file whole"):  # the claim was believed
            open_picture(png((9999, 10000)))


def test_an_opened_picture_over_the_limit_is_refused() -> None:
    with pytest.raises(ImageError, match="10000 x 10000 px"):
        preprocess(Image.new("1", (10000, 10000)), SPEC)


def test_a_panorama_is_padded_without_the_whole_square() -> None:
    picture = Image.new("RGB", (LIMIT_SIDE_PX, 40), (10, 20, 30))
    pixels = preprocess(picture, replace(SPEC, size_px=28))
    assert pixels.shape == (1, 3, 28, 28)


def test_crop_refuses_a_ribbon() -> None:
    with pytest.raises(ImageError, match="would be 336000 px long at a short side of 336 px"):
        preprocess(Image.new("RGB", (2000, 2)), replace(SPEC, fit="crop"))


def broken_files() -> dict[str, bytes]:
    whole = {}
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff"):
        data = io.BytesIO()
        noise((90, 61)).save(data, kind)
        whole[f"half a {kind}"] = data.getvalue()[: len(data.getvalue()) // 2]
    return whole | {
        "nothing": b"",
        "text": b"this is not a picture",
        "json": b'{"a": 1}',
        "zip": b"PK\x03\x04" + b"\0" * 100,
        "PNG head only": b"\x89PNG\r\n\x1a\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "zeros": b"\0" * 4096,
    }


@pytest.mark.parametrize("name", broken_files())
def test_what_is_not_a_whole_picture_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(broken_files()[name])
    with pytest.raises(ImageError, match=r"broken\.png") as caught:
        preprocess(path, SPEC)
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="the picture"):
        preprocess(path.read_bytes(), SPEC)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png is missing"):
        preprocess(tmp_path / "gone.png", SPEC)
    with pytest.raises(ImageError, match="cannot be decoded"):
        preprocess(tmp_path, SPEC)


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(ImageError, match="is empty: 0 x 5 px"):
        preprocess(Image.new("RGB", (0, 5)), SPEC)
