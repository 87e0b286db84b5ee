"""Questions about a scene and their answers."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from mllm_export.export.reference.scenes import COLORS, DIGIT, SHAPES, Scene, Thing

KIND_WEIGHTS = {
    "shape": 1.0,
    "color": 1.0,
    "describe": 1.2,
    "place": 1.0,
    "count": 1.2,
    "digit": 1.6,
}
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with its only right answer."""

    kind: str
    text: str
    answer: str


def _only(things: list[Thing]) -> Thing | None:
    return things[0] if len(things) == 1 else None


def _about_color(scene: Scene) -> list[Question]:
    found = []
    for color in COLORS:
        thing = _only([thing for thing in scene.things if thing.color == color])
        if thing is not None and thing.kind != DIGIT:
            text = f"What shape is the {color} object?"
            found.append(Question(kind="shape", text=text, answer=thing.kind))
    return found


def _about_kind(scene: Scene) -> list[Question]:
    found = []
    for kind in (*SHAPES, DIGIT):
        thing = _only([thing for thing in scene.things if thing.kind == kind])
        if thing is not None:
            text = f"What color is the {kind}?"
            found.append(Question(kind="color", text=text, answer=thing.color))
    return found


def _about_place(scene: Scene) -> list[Question]:
    found = []
    for thing in scene.things:
        alike = [other for other in scene.things if other.kind == thing.kind]
        if thing.kind == DIGIT:
            name = "digit"
        elif sum(other.color == thing.color for other in alike) == 1:
            name = f"{thing.color} {thing.kind}"
        else:
            continue
        found.append(Question(kind="place", text=f"Where is the {name}?", answer=thing.place))
    for thing in scene.shapes:
        text = f"What is in the {thing.place}?"
        answer = f"{thing.color} {thing.kind}"
        found.append(Question(kind="describe", text=text, answer=answer))
    return found


def _about_count(scene: Scene) -> list[Question]:
    counts = {"How many shapes are there?": len(scene.shapes)}
    for shape in SHAPES:
        number = sum(thing.kind == shape for thing in scene.shapes)
        counts[f"How many {PLURALS[shape]} are there?"] = number
    for color in COLORS:
        number = sum(thing.color == color for thing in scene.shapes)
        counts[f"How many {color} shapes are there?"] = number
    return [Question(kind="count", text=text, answer=str(n)) for text, n in counts.items()]


def all_questions(scene: Scene) -> list[Question]:
    """Every question that has exactly one right answer in this scene."""
    digits = [
        Question(kind="digit", text="Which digit is shown?", answer=str(thing.digit))
        for thing in scene.digits
    ]
    return [
        *_about_color(scene),
        *_about_kind(scene),
        *_about_place(scene),
        *_about_count(scene),
        *digits,
    ]


def pick_questions(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """Draw different questions: first the kind by its weight, then the answer, then the question.

    Choosing the answer before the question keeps "0" from ruling the counts.
    """
    pool: dict[str, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    for question in all_questions(scene):
        pool[question.kind][question.answer].append(question)
    picked: list[Question] = []
    while pool and len(picked) < count:
        kinds = sorted(pool)
        weights = np.array([KIND_WEIGHTS[kind] for kind in kinds])
        kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
        answers = sorted(pool[kind])
        answer = answers[rng.integers(len(answers))]
        rest = pool[kind][answer]
        picked.append(rest.pop(int(rng.integers(len(rest)))))
        if not rest:
            del pool[kind][answer]
        if not pool[kind]:
            del pool[kind]
    return picked
