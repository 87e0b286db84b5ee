"""Calibration sets: the built-in one, one of the user's, and what is wrong with bad ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mllm_export.device_tests.calibration import PICTURES, calibration_pixels
from mllm_export.device_tests.samples import read_calibration
from mllm_export.errors import CheckError
from mllm_export.export.parts import ENCODERS, PROJECTORS
from mllm_export.spec import VisionSpec


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (40, 30), (10, 200, 90)).save(tmp_path / "a.png")
    line = json.dumps({"image": "a.png", "question": "What?"})
    (tmp_path / "questions.jsonl").write_text(f"{line}\n\n{line}\n")
    return tmp_path


def test_answers_may_be_left_out(folder):
    found = read_calibration(folder)
    assert [one.text for one in found.questions] == ["What?", "What?"]
    assert list(found.pictures) == ["a.png"]


def test_the_built_in_set_is_taken_without_a_path():
    assert len(read_calibration(None).pictures) == 32


def test_pictures_go_through_the_devices_preprocessing(folder):
    encoder = ENCODERS["clip_vit"].tiny()
    projector = PROJECTORS["linear"].spec(encoder.width, 8, encoder.tokens_out)

    class Spec:
        vision = VisionSpec(encoders=(encoder,), projector=projector)

    pixels = calibration_pixels(Spec(), folder, lambda _step: None)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 96, 96), np.float32)
    assert PICTURES >= 16


def test_a_broken_line_is_named_by_its_number(folder):
    with (folder / "questions.jsonl").open("a") as file:
        file.write('{"image": "a.png"\n')
    with pytest.raises(CheckError, match=r"questions\.jsonl, line 4: not valid JSON"):
        read_calibration(folder)


def test_a_picture_that_does_not_open_is_named(folder):
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[:60])
    with pytest.raises(CheckError, match=r"calibration picture 'a\.png' does not open \("):
        read_calibration(folder)


def test_a_folder_without_questions_says_what_was_looked_for(tmp_path):
    with pytest.raises(CheckError, match=r"calibration file .*questions\.jsonl cannot be read"):
        read_calibration(tmp_path)
