"""Questions against answers recomputed from the scene by other means."""

import re
from collections import Counter

import numpy as np
import pytest

from mllm_export.export.reference.pictures import scene_of
from mllm_export.export.reference.questions import all_questions, pick_questions
from mllm_export.export.reference.scenes import COLORS, SHAPES, Scene

SCENES = range(60)


def _grid(scene: Scene) -> list[tuple[str, str, str]]:
    """(place, color, name) of each thing, the place from its coordinates alone."""
    found = []
    for thing in scene.things:
        row = "top" if thing.y < scene.height / 2 else "bottom"
        column = "left" if thing.x < scene.width / 2 else "right"
        found.append((f"{row} {column}", thing.color, thing.kind))
    return found


def _answers(scene: Scene, text: str) -> set[str]:
    """Every answer that the scene allows, found by the words of the question."""
    grid = _grid(scene)
    if match := re.fullmatch(r"What shape is the (\w+) object\?", text):
        return {name for _, color, name in grid if color == match[1]}
    if match := re.fullmatch(r"What color is the (\w+)\?", text):
        return {color for _, color, name in grid if name == match[1]}
    if match := re.fullmatch(r"What is in the (\w+ \w+)\?", text):
        return {f"{color} {name}" for place, color, name in grid if place == match[1]}
    if match := re.fullmatch(r"Where is the (?:(\w+) )?(\w+)\?", text):
        wanted = (match[1], match[2])
        return {at for at, color, name in grid if wanted in ((color, name), (None, name))}
    if match := re.fullmatch(r"How many (?:(\w+) )?(\w+?)(?:es|s) are there\?", text):
        named = [(c, n) for _, c, n in grid if n != "digit" and match[1] in (None, c)]
        kind = {"circl": "circle", "squar": "square", "triangl": "triangle", "shap": "shape"}
        name = kind.get(match[2], match[2])
        return {str(sum(name in ("shape", n) for _, n in named))}
    assert text == "Which digit is shown?"
    return {str(thing.digit) for thing in scene.things if thing.kind == "digit"}


@pytest.mark.parametrize("index", SCENES)
def test_every_question_has_exactly_the_answer_that_the_scene_gives(index: int) -> None:
    scene = scene_of(1, index)
    for question in all_questions(scene):
        assert _answers(scene, question.text) == {question.answer}, question


def test_every_kind_of_question_comes_up() -> None:
    kinds = {asked.kind for index in SCENES for asked in all_questions(scene_of(1, index))}
    assert kinds == {"shape", "color", "describe", "place", "count", "digit"}


def test_picked_questions_differ_and_repeat_by_seed() -> None:
    for index in SCENES:
        scene = scene_of(1, index)
        picked = pick_questions(scene, np.random.default_rng(index), 4)
        assert len({asked.text for asked in picked}) == 4
        assert picked == pick_questions(scene, np.random.default_rng(index), 4)


def test_answers_of_training_are_balanced() -> None:
    picked = [
        asked
        for index in range(400)
        for asked in pick_questions(scene_of(1, index), np.random.default_rng(index), 4)
    ]
    common = Counter(asked.answer for asked in picked).most_common(1)[0][1]
    assert common / len(picked) < 0.2
    assert {asked.answer for asked in picked} >= {*SHAPES, *COLORS}
