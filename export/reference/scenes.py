"""What a picture shows: shapes and handwritten digits in the four quarters of a light canvas."""

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
DIGIT = "digit"
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 40),
    "green": (42, 158, 60),
    "blue": (38, 92, 214),
    "yellow": (236, 204, 30),
    "orange": (246, 132, 26),
    "purple": (134, 54, 176),
    "black": (34, 34, 38),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")
CANVASES = (
    (336, 336), (300, 300), (420, 336), (336, 448), (448, 336),
    (320, 240), (240, 320), (384, 288), (280, 336),
)  # fmt: skip
TEXTURES = ("plain", "rows", "columns", "mosaic")
# Diameter as a share of the longer side: a digit needs about a patch for each of its 8 rows.
SHAPE_SHARE = (0.18, 0.31)
DIGIT_SHARE = (0.31, 0.37)
DIGIT_CHANCE = 0.5
FEW_KINDS_CHANCE = 0.45  # scenes of repeated shapes and colors, so that counts pass 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A shape or a digit. Units: x, y (centre), size in pixels of the canvas."""

    kind: str  # one of SHAPES, or DIGIT
    color: str
    place: str
    x: float
    y: float
    size: float
    turn_degrees: float
    digit: int  # the value that a DIGIT shows, -1 for a shape
    source: int  # the DIGIT's place in its DigitSet, -1 for a shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture before it is drawn. `seed` fixes everything that is left to chance in drawing."""

    seed: int
    split: str
    width: int
    height: int
    texture: str
    things: tuple[Thing, ...]

    @property
    def shapes(self) -> tuple[Thing, ...]:
        """The things that are shapes."""
        return tuple(thing for thing in self.things if thing.kind != DIGIT)

    @property
    def digits(self) -> tuple[Thing, ...]:
        """The things that are handwritten digits: one at most."""
        return tuple(thing for thing in self.things if thing.kind == DIGIT)


def _centre(
    rng: np.random.Generator, place: str, size: float, canvas: tuple[int, int]
) -> tuple[float, float]:
    """A centre that keeps a thing of this size inside its quarter of the canvas."""
    row, column = place.split()
    spans = []
    for side, is_second in ((canvas[0], column == "right"), (canvas[1], row == "bottom")):
        low, high = size / 2 + 2, side / 2 - size / 2
        spans.append(float(rng.uniform(low, max(low, high))) + is_second * side / 2)
    return spans[0], spans[1]


def _thing(
    rng: np.random.Generator,
    kind: str,
    color: str,
    place: str,
    canvas: tuple[int, int],
    label: tuple[int, int],
) -> Thing:
    share = DIGIT_SHARE if kind == DIGIT else SHAPE_SHARE
    size = float(rng.uniform(*share)) * max(canvas)
    x, y = _centre(rng, place, size, canvas)
    turn = float(rng.uniform(-12, 12))
    return Thing(
        kind=kind, color=color, place=place, x=x, y=y, size=size, turn_degrees=turn,
        digit=label[0], source=label[1],
    )  # fmt: skip


def make_scene(seed: int, split: str, labels: tuple[int, ...]) -> Scene:
    """Compose a scene; the same seed, split and digit labels give the same scene."""
    rng = np.random.default_rng(seed)
    canvas = CANVASES[rng.integers(len(CANVASES))]
    places = list(rng.permutation(PLACES)[: rng.choice(4, p=(0.12, 0.22, 0.33, 0.33)) + 1])
    shapes, colors = list(SHAPES), list(COLORS)
    if rng.random() < FEW_KINDS_CHANCE:
        shapes = list(rng.permutation(shapes)[:2])
        colors = list(rng.permutation(colors)[:3])
    things = []
    if rng.random() < DIGIT_CHANCE:
        source = int(rng.integers(len(labels)))
        color = str(rng.choice(list(COLORS)))
        things.append(
            _thing(rng, DIGIT, color, str(places.pop()), canvas, (labels[source], source))
        )
    for place in places:
        kind, color = str(rng.choice(shapes)), str(rng.choice(colors))
        things.append(_thing(rng, kind, color, str(place), canvas, (-1, -1)))
    return Scene(
        seed=seed, split=split, width=canvas[0], height=canvas[1],
        texture=str(rng.choice(TEXTURES)), things=tuple(things),
    )  # fmt: skip
