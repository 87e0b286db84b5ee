from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm_export.device_tests.pictures import MODES, TURNS, ladder, scenes
from mllm_export.device_tests.samples import generic_samples, read_evaluation
from mllm_export.errors import CheckError


def write(folder: Path, *lines: object) -> Path:
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    file = folder / "questions.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(text))
    return file


GOOD = {"image": "a.png", "question": "What?", "answers": ["red", "crimson"], "kind": "colour"}


def test_an_evaluation_is_read_with_its_pictures(tmp_path: Path) -> None:
    samples = read_evaluation(write(tmp_path, GOOD, "", {**GOOD, "question": "Why?"}))
    assert [one.text for one in samples.questions] == ["What?", "Why?"]
    assert samples.questions[0].answers == ("red", "crimson")
    assert samples.answered
    (picture,) = samples.of(samples.questions[1])
    assert picture.open().size == (4, 4)


def test_the_folder_stands_for_its_questions_file(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert len(read_evaluation(tmp_path).questions) == 1


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "line 2: not valid JSON"),
        ([1], "line 2: holds a list, needed: a JSON object"),
        ({**GOOD, "image": None}, "line 2: key 'image' is None, needed: a string"),
        ({**GOOD, "question": 3}, "line 2: key 'question' is 3, needed: a string"),
        ({**GOOD, "answers": "red"}, "line 2: key 'answers' is 'red', needed: a list of strings"),
        ({**GOOD, "answers": []}, "line 2: key 'answers' is empty"),
        ({**GOOD, "image": "b.png"}, "picture 'b.png' is not there; looked for"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, text: str) -> None:
    with pytest.raises(CheckError, match=text):
        read_evaluation(write(tmp_path, GOOD, line))


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="cannot be read"):
        read_evaluation(tmp_path / "none.jsonl")
    with pytest.raises(CheckError, match="holds no questions"):
        read_evaluation(write(tmp_path, ""))


def test_generic_samples_have_no_answers_and_are_the_same_each_time() -> None:
    one, other = generic_samples(4), generic_samples(4)
    assert not one.answered
    assert one.questions == other.questions
    for name, picture in one.pictures.items():
        assert (np.asarray(picture.open()) == np.asarray(other.pictures[name].open())).all()


def test_scenes_differ() -> None:
    pixels = [np.asarray(one.open().resize((32, 32))) for one in scenes(3)]
    assert not (pixels[0] == pixels[1]).all()


def test_the_ladder_holds_every_mode_and_turn_and_names_are_its_own() -> None:
    rungs = list(ladder())
    opened = [one.open() for one in rungs]
    assert set(MODES) <= {image.mode for image in opened}
    turns = {image.getexif().get(0x0112) for image in opened}
    assert set(TURNS) <= turns
    assert len({one.name for one in rungs}) == len(rungs)
    assert any(image.width < 10 for image in opened)
