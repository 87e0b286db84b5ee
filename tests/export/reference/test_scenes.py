"""Scenes, their pictures and their patch labels."""

import numpy as np
import pytest
from PIL import Image

from mllm_export.export.reference.digits import load_digit_set
from mllm_export.export.reference.drawing import FILL, draw, patch_labels, square_pixels
from mllm_export.export.reference.pictures import scene_of
from mllm_export.export.reference.scenes import COLORS, DIGIT

SCENES = range(40)


def test_held_out_digits_are_not_among_the_training_digits() -> None:
    train, held_out = load_digit_set("train"), load_digit_set("held_out")
    assert not set(train.rows) & set(held_out.rows)
    assert len(train.rows) + len(held_out.rows) == 1797


def test_no_training_digit_is_a_copy_of_a_held_out_one() -> None:
    train = {ink.tobytes() for ink in load_digit_set("train").ink}
    assert not train & {ink.tobytes() for ink in load_digit_set("held_out").ink}


def test_a_seed_fixes_the_scene_and_its_pixels() -> None:
    for index in range(5):
        first, second = scene_of(3, index), scene_of(3, index)
        assert first == second
        assert draw(first).tobytes() == draw(second).tobytes()
    assert scene_of(3, 0) != scene_of(4, 0)
    assert scene_of(3, 0) != scene_of(3, 0, "held_out")


@pytest.mark.parametrize("index", SCENES)
def test_things_stay_inside_their_own_quarter(index: int) -> None:
    scene = scene_of(0, index)
    assert len({thing.place for thing in scene.things}) == len(scene.things)
    for thing in scene.things:
        row, column = thing.place.split()
        left = scene.width / 2 * (column == "right")
        top = scene.height / 2 * (row == "bottom")
        half = thing.size / 2
        assert left <= thing.x - half
        assert thing.x + half <= left + scene.width / 2 + 3
        assert top <= thing.y - half
        assert thing.y + half <= top + scene.height / 2 + 3


def test_shapes_show_their_color_near_the_centre() -> None:
    for index in SCENES:
        scene = scene_of(0, index)
        pixels = np.asarray(draw(scene)).astype(int)
        for thing in scene.shapes:
            if thing.kind == "ring":
                continue
            found = pixels[round(thing.y), round(thing.x)]
            distance = {name: abs(found - np.array(rgb)).sum() for name, rgb in COLORS.items()}
            assert min(distance, key=lambda name: distance[name]) == thing.color


def test_a_digit_shows_the_label_of_its_source() -> None:
    for split in ("train", "held_out"):
        labels = load_digit_set(split).labels
        digits = [thing for index in SCENES for thing in scene_of(0, index, split).digits]
        assert digits
        assert all(thing.digit == labels[thing.source] for thing in digits)
        assert all(thing.kind == DIGIT for thing in digits)


def test_square_pixels_pads_both_sides_alike() -> None:
    pixels = square_pixels(Image.new("RGB", (336, 168), (255, 255, 255)), 336)
    assert pixels.shape == (336, 336, 3)
    assert tuple(pixels[0, 0]) == FILL
    assert tuple(pixels[-1, -1]) == FILL
    assert (pixels[84:252] == 255).all()


@pytest.mark.parametrize("grid", [12, 24])
def test_patch_labels_mark_one_centre_for_each_thing(grid: int) -> None:
    for index in SCENES:
        scene = scene_of(0, index)
        labels = patch_labels(scene, grid)
        assert labels.kind.shape == (grid, grid)
        assert labels.centre.sum() == len(scene.things)
        assert (labels.kind[labels.centre == 1] > 0).all()
