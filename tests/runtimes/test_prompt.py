"""The prompt as ids: against the original's own function, and spliced for the decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaTokenizer

from mllm_export.errors import EngineError, SpecError
from mllm_export.runtimes.prompt import count_positions, splice
from mllm_export.runtimes.session import Session
from mllm_export.spec import IMAGE_ID


def tokenizer_image_token(prompt: str, tokenizer: LlamaTokenizer) -> list[int]:
    """Source: mobilevlm/utils.py, written afresh: what it does to the pieces' first ids."""
    pieces = [tokenizer(piece).input_ids for piece in prompt.split("<image>")]
    ids = [pieces[0][0]]
    for number, piece in enumerate(pieces):
        ids += ([-200] if number else []) + piece[1:]
    return ids


@pytest.fixture(scope="module")
def slow(tokenizer_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(tokenizer_model)
    return LlamaTokenizer(str(path), legacy=True)


QUESTIONS = ["what is this?", "", " ", "a\nb", "</s> how many", "図形 😀", "left <image> or right"]


@pytest.mark.parametrize("images", [0, 1, 2, 5])
@pytest.mark.parametrize("question", QUESTIONS)
def test_ids_equal_the_originals(
    session: Session, slow: LlamaTokenizer, question: str, images: int
) -> None:
    if "<image>" in question and images != 1:
        with pytest.raises(SpecError, match=f"holds 1 <image> markers for {images} images"):
            session.encode(question, images)
        return
    text = session.spec.prompt.text(question, images)
    ids = session.encode(question, images)
    assert ids == tokenizer_image_token(text, slow)
    assert (ids[0], ids.count(1), ids.count(IMAGE_ID)) == (1, 1, images)


def test_the_piece_behind_an_image_gets_its_own_blank(session: Session) -> None:
    ids = session.encode("what", 1)
    blank, newline = session.encode("", 0)[-1:], session._decoder.tokenize("\n")
    assert newline != blank
    place = ids.index(IMAGE_ID)
    assert ids[place + 1 : place + 1 + len(newline)] == newline


def test_splice_puts_images_in_order() -> None:
    first, second = np.full((3, 4), 1, np.float32), np.full((2, 4), 2, np.float32)
    segments = splice([1, -200, 5, 6, -200], [first, second], 10)
    assert segments[0] == [1]
    assert segments[1] is first
    assert segments[2] == [5, 6]
    assert segments[3] is second
    assert count_positions(segments) == 8


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([1, 2], 1, "0 image places .*, 1 images were given"),
        ([1, -200, -200], 1, "2 image places .*, 1 images were given"),
        ([], 0, "the prompt is empty"),
        ([1, -1], 0, "token id -1 is outside the vocabulary of 10"),
        ([10], 0, "token id 10 is outside"),
    ],
)
def test_splice_refuses_what_does_not_fit(ids: list[int], images: int, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        splice(ids, [np.zeros((1, 4), np.float32)] * images, 10)


def test_no_bos_where_the_tokenizer_has_none(bundle_copy: Path) -> None:
    import json

    from mllm_export.runtimes import load

    path = bundle_copy / "bundle.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["tokenizer"]["add_bos"] = False
    path.write_text(json.dumps(data), encoding="utf-8")
    with load(bundle_copy, threads=1) as session:
        without = session.encode("what", 1)
    with load(bundle_copy, threads=1, verify=False) as session:
        assert without == session.encode("what", 1)
    assert 1 not in without
