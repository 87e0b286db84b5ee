"""Write the pictures and questions that ship with the checkpoint."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from mllm_export.export.reference.drawing import draw
from mllm_export.export.reference.pictures import scene_of
from mllm_export.export.reference.questions import Question, all_questions, pick_questions
from mllm_export.export.reference.scenes import Scene

QUESTIONS = "questions.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """Scenes numbered from `first` in a split, with so many questions on each."""

    name: str
    split: str
    first: int
    pictures: int
    questions: int


def question_sets(pool_size: int) -> tuple[QuestionSet, ...]:
    """The evaluation set has digits and scenes of its own; calibration is unseen training data."""
    return (
        QuestionSet(name="evaluation", split="held_out", first=0, pictures=125, questions=4),
        QuestionSet(name="calibration", split="train", first=pool_size, pictures=32, questions=4),
    )


def _write(folder: Path, scenes: list[tuple[Scene, list[Question]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    lines = []
    for at, (scene, questions) in enumerate(scenes):
        name = f"{at:03d}.png"
        draw(scene).save(folder / name, optimize=True)
        for asked in questions:
            line = {
                "image": name, "question": asked.text, "answers": [asked.answer],
                "kind": asked.kind,
            }  # fmt: skip
            lines.append(json.dumps(line) + "\n")
    (folder / QUESTIONS).write_text("".join(lines), encoding="utf-8")


def write_set(out: Path, chosen: QuestionSet, seed: int) -> None:
    """Draw one set into a folder of its name."""
    scenes = []
    for index in range(chosen.first, chosen.first + chosen.pictures):
        scene = scene_of(seed, index, chosen.split)
        rng = np.random.default_rng((seed, 13, index))
        scenes.append((scene, pick_questions(scene, rng, chosen.questions)))
    _write(out / chosen.name, scenes)


def _first(scenes: Iterator[Scene], kind: str, things: int, digits: int) -> tuple[Scene, Question]:
    """The first scene of this make-up, with its first question of a kind."""
    for scene in scenes:
        if len(scene.shapes) != things or len(scene.digits) != digits:
            continue
        fitting = [asked for asked in all_questions(scene) if asked.kind == kind]
        if kind == "count":
            fitting = [asked for asked in fitting if asked.answer == "2"]
        if fitting:
            return scene, fitting[0]
    raise LookupError(f"no scene has {things} shapes, {digits} digits and a question of {kind}")


def write_demo(out: Path, seed: int) -> None:
    """Three held-out pictures: one about color, one about a count, one with a digit."""
    beyond = 1000  # past the evaluation scenes
    scenes = (scene_of(seed, index, "held_out") for index in count(beyond))
    makeups = (("color", 3, 0), ("count", 4, 0), ("digit", 2, 1))
    found = [_first(scenes, kind, things, digits) for kind, things, digits in makeups]
    _write(out / "demo", [(scene, [asked]) for scene, asked in found])
