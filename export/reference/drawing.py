"""Scenes to pictures, and to the labels of every patch that the tower is trained on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mllm_export.export.reference.digits import load_digit_set
from mllm_export.export.reference.scenes import COLORS, DIGIT, PLACES, SHAPES, Scene, Thing

FILL = (122, 116, 104)  # Source: MobileVLM's expand2square, int(255 * CLIP mean)
OVERSAMPLE = 3
COLOR_JITTER = 12
STAR_INNER = 0.42
KINDS = (*SHAPES, *(str(digit) for digit in range(10)))
INSIDE, OUTSIDE = 0.72, 1.05  # of the radius: labelled within, background beyond, else ignored
IGNORE = -100


def _polygon(kind: str) -> list[tuple[float, float]]:
    """The corners of a shape in the square -1..1."""
    if kind == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if kind == "triangle":
        return [(0.0, -0.92), (0.84, 0.6), (-0.84, 0.6)]
    if kind == "cross":
        arm = 0.32
        quarter = [(arm, -arm), (arm, -0.95), (-arm, -0.95)]
        turns = [quarter]
        for _ in range(3):
            turns.append([(y, -x) for x, y in turns[-1]])
        return [point for turn in turns for point in turn]
    radii = [1.0 if corner % 2 == 0 else STAR_INNER for corner in range(10)]
    angles = [np.pi * corner / 5 for corner in range(10)]
    return [
        (r * float(np.sin(a)), -r * float(np.cos(a))) for r, a in zip(radii, angles, strict=True)
    ]


def _shape_mask(thing: Thing) -> Image.Image:
    side = max(8, round(thing.size)) * OVERSAMPLE
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    if thing.kind in ("circle", "ring"):
        pen.ellipse((0, 0, side - 1, side - 1), fill=255)
        if thing.kind == "ring":
            hole = side * 0.24
            pen.ellipse((hole, hole, side - hole, side - hole), fill=0)
    else:
        half = side / 2
        pen.polygon([(half + x * half, half + y * half) for x, y in _polygon(thing.kind)], fill=255)
    return mask


def _digit_mask(thing: Thing, split: str) -> Image.Image:
    ink = np.pad(load_digit_set(split).ink[thing.source], 1)  # room to turn
    side = max(8, round(thing.size)) * 2
    mask = Image.fromarray(np.uint8(ink * 255)).resize((side, side), Image.Resampling.BICUBIC)
    return mask.point(lambda value: min(255, value * 5 // 4))


def _paste(picture: Image.Image, thing: Thing, split: str, rng: np.random.Generator) -> None:
    mask = _digit_mask(thing, split) if thing.kind == DIGIT else _shape_mask(thing)
    side = max(8, round(thing.size))
    mask = mask.rotate(thing.turn_degrees, Image.Resampling.BILINEAR)
    mask = mask.resize((side, side), Image.Resampling.BOX)
    jitter = rng.integers(-COLOR_JITTER, COLOR_JITTER + 1, 3)
    color = tuple(int(v) for v in np.clip(np.array(COLORS[thing.color]) + jitter, 0, 255))
    corner = (round(thing.x - side / 2), round(thing.y - side / 2))
    picture.paste(Image.new("RGB", mask.size, color), corner, mask)


def _background(scene: Scene, rng: np.random.Generator) -> Image.Image:
    tint = rng.integers(206, 253, 3)
    other = np.clip(tint + rng.integers(-14, 15, 3), 196, 255)
    rows, columns = np.indices((scene.height, scene.width)) // int(rng.integers(9, 28))
    if scene.texture == "plain":
        second = np.zeros_like(rows, dtype=bool)
    elif scene.texture == "rows":
        second = rows % 2 == 1
    elif scene.texture == "columns":
        second = columns % 2 == 1
    else:
        second = rng.random((rows.max() + 1, columns.max() + 1))[rows, columns] < 0.5
    picture = Image.fromarray(np.where(second[..., None], other, tint).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 24))):  # specks
        x, y = float(rng.uniform(0, scene.width)), float(rng.uniform(0, scene.height))
        radius, gray = float(rng.uniform(0.6, 2.6)), int(rng.integers(70, 190))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(gray, gray, gray))
    return picture


def draw(scene: Scene) -> Image.Image:
    """Draw a scene at its own size, RGB."""
    rng = np.random.default_rng((scene.seed, 1))
    picture = _background(scene, rng)
    for thing in scene.things:
        _paste(picture, thing, scene.split, rng)
    return picture


def square_pixels(picture: Image.Image, image_px: int) -> NDArray[np.uint8]:
    """Pad to a square and resize, as LLaVA's `pad` does before it normalises.

    Shapes: any RGB picture -> u8[px, px, 3].
    """
    side = max(picture.size)
    canvas = Image.new("RGB", (side, side), FILL)
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    if side != image_px:
        canvas = canvas.resize((image_px, image_px), Image.Resampling.BICUBIC)
    return np.asarray(canvas)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchLabels:
    """What each patch of a padded picture belongs to; 0 is background. Shapes: i8[grid, grid]."""

    kind: NDArray[np.int8]  # 1 + place in KINDS
    color: NDArray[np.int8]  # 1 + place in COLORS
    place: NDArray[np.int8]  # 1 + place in PLACES
    centre: NDArray[np.int8]  # 1 on the patch that holds a thing's centre


def patch_labels(scene: Scene, grid: int) -> PatchLabels:
    """Label the patches of the scene's padded picture; IGNORE near the edge of a thing."""
    side = max(scene.width, scene.height)
    scale = grid / side
    rows, columns = np.indices((grid, grid)) + 0.5
    kind, color, place, centre = np.zeros((4, grid, grid), dtype=np.int8)
    for thing in scene.things:
        x = (thing.x + (side - scene.width) // 2) * scale
        y = (thing.y + (side - scene.height) // 2) * scale
        distance = np.hypot(columns - x, rows - y) / (thing.size * scale / 2)
        inside, edge = distance < INSIDE, (distance >= INSIDE) & (distance < OUTSIDE)
        name = str(thing.digit) if thing.kind == DIGIT else thing.kind
        values = (KINDS.index(name), list(COLORS).index(thing.color), PLACES.index(thing.place))
        for labels, value in zip((kind, color, place), values, strict=True):
            labels[edge] = IGNORE
            labels[inside] = 1 + value
        centre[int(y), int(x)] = 1
    return PatchLabels(kind=kind, color=color, place=place, centre=centre)
