"""The session's four cuts, and the answers that come out of them."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from mllm_export.errors import EngineError, ImageError, SpecError
from mllm_export.runtimes import load
from mllm_export.runtimes.embedding_cache import EmbeddingCache
from mllm_export.runtimes.generation import Step
from mllm_export.runtimes.session import Session
from mllm_export.spec import IMAGE_ID

QUESTION = "how many red circle"


@pytest.fixture
def other(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def ids_of(steps: Sequence[Step]) -> list[int]:
    return [step.token_id for step in steps]


def test_the_four_cuts_have_the_promised_shapes(session: Session, picture: Image.Image) -> None:
    pixels = session.preprocess(picture)
    embeddings = session.embed(picture)
    ids = session.encode(QUESTION)
    logits = session.logits(QUESTION, picture)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 28, 28), np.float32)
    assert (embeddings.shape, embeddings.dtype) == ((16, 64), np.float32)
    assert ids.count(IMAGE_ID) == 1
    assert (logits.shape, logits.dtype) == ((len(ids) + 15, 800), np.float32)


def test_every_form_of_an_image_gives_the_same_logits(
    session: Session, picture: Image.Image, tmp_path: Path
) -> None:
    data = io.BytesIO()
    picture.save(data, "PNG")
    (tmp_path / "picture.png").write_bytes(data.getvalue())
    forms = [
        picture,
        tmp_path / "picture.png",
        str(tmp_path / "picture.png"),
        data.getvalue(),
        session.preprocess(picture),
        session.embed(picture),
        [picture],
        (session.embed(picture),),
    ]
    wanted = session.logits(session.encode(QUESTION), picture)
    for form in forms:
        np.testing.assert_array_equal(session.logits(QUESTION, form), wanted)


def test_the_image_matters_and_so_does_the_order_of_two(
    session: Session, picture: Image.Image, other: Image.Image
) -> None:
    one = session.logits(QUESTION, [picture, other])[-1]
    swapped = session.logits(QUESTION, [other, picture])[-1]
    assert np.abs(one - swapped).max() > 0.1
    assert session.logits(QUESTION, [picture, other]).shape[0] == (
        len(session.encode(QUESTION, 2)) + 2 * 15
    )


def test_two_images_stand_where_their_markers_are(
    session: Session, picture: Image.Image, other: Image.Image
) -> None:
    text = "<image> left <image> circle"
    ids = session.encode(text, 2)
    rows = session.logits(text, [picture, other])
    first = ids.index(IMAGE_ID)
    alone = session.logits([*ids[: first + 1]], picture)
    # Causal: what stands behind cannot change what stands before.
    np.testing.assert_allclose(rows[: first + 16], alone, atol=1e-4)


def test_text_alone_works(session: Session) -> None:
    ids = session.encode(QUESTION, 0)
    assert IMAGE_ID not in ids
    assert session.logits(QUESTION).shape == (len(ids), 800)
    assert session.answer(QUESTION, max_tokens=4)


def test_embeddings_are_remembered_by_their_pixels(
    session: Session, picture: Image.Image, other: Image.Image
) -> None:
    calls: list[int] = []
    embed = session._tower.embed

    class Counting:
        def embed(self, pixels: np.ndarray) -> np.ndarray:
            calls.append(len(pixels))
            return embed(pixels)

        def close(self) -> None: ...

    session._tower = Counting()
    first = session.embed(picture)
    assert session.embed(session.preprocess(picture)) is first
    assert session.embed(other) is not first
    assert calls == [1, 1]
    assert not first.flags.writeable


def test_the_cache_forgets_the_image_not_asked_for_longest() -> None:
    cache, computed = EmbeddingCache(entries=2), []

    def compute(pixels: np.ndarray) -> np.ndarray:
        computed.append(int(pixels[0]))
        return pixels + 1

    for value in (1, 2, 1, 3, 1, 2):
        cache.get(np.array([value], np.float32), compute)
    assert computed == [1, 2, 3, 2]


def test_greedy_steps_take_the_largest_logit(session: Session, picture: Image.Image) -> None:
    ids = session.encode(QUESTION)
    steps = list(session.generate(QUESTION, picture, max_tokens=24))
    rows = session.logits([*ids, *ids_of(steps)], picture)
    behind = len(ids) + 15 - 1
    for number, step in enumerate(steps):
        row = rows[behind + number]
        # Steps and batches differ by rounding; 0.03 was the most over 700 steps.
        assert row[step.token_id] >= row.max() - 0.06
    assert steps[0].token_id == int(rows[behind].argmax())


def test_the_same_question_again_gives_the_same_answer_from_the_cache(
    session: Session, picture: Image.Image
) -> None:
    first = list(session.generate(QUESTION, picture, max_tokens=12))
    again = list(session.generate(QUESTION, picture, max_tokens=12))
    assert ids_of(first) == ids_of(again)
    assert (first[0].reused_positions, again[0].reused_positions > 16) == (0, True)


def test_another_question_keeps_the_image_in_the_cache(
    bundle: Path, session: Session, picture: Image.Image
) -> None:
    list(session.generate(QUESTION, picture, max_tokens=12))
    warm = list(session.generate("left </s> 図形", picture, max_tokens=12))
    assert warm[0].reused_positions == session.encode("", 1).index(IMAGE_ID) + 16
    with load(bundle, threads=1) as fresh:
        assert ids_of(warm) == ids_of(
            list(fresh.generate("left </s> 図形", picture, max_tokens=12))
        )


def test_sampling_repeats_with_its_seed(session: Session, picture: Image.Image) -> None:
    def draw(seed: int) -> list[int]:
        steps = session.generate(QUESTION, picture, max_tokens=16, temperature=1.0, seed=seed)
        return ids_of(list(steps))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_the_streamed_text_is_the_text_of_the_ids(
    session: Session, picture: Image.Image, sentences: sentencepiece.SentencePieceProcessor
) -> None:
    steps = list(session.generate(QUESTION, picture, max_tokens=40, temperature=1.5, seed=5))
    text = "".join(step.text for step in steps)
    assert text == sentences.decode([token for token in ids_of(steps) if token > 2])
    assert steps[-1].finish in {"length", "eos"}
    assert all(step.finish == "" for step in steps[:-1])


def with_prompt(folder: Path, **changes: object) -> Session:
    path = folder / "bundle.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["prompt"].update(changes)
    path.write_text(json.dumps(data), encoding="utf-8")
    return load(folder, threads=1)


def test_a_stop_string_that_spans_tokens_ends_the_answer(
    bundle_copy: Path, picture: Image.Image
) -> None:
    with load(bundle_copy, threads=1) as session:
        free = list(session.generate(QUESTION, picture, max_tokens=30))
    texts = [step.text for step in free]
    # The end of one token and the start of the next, both with text of their own.
    place = next(i for i in range(2, 29) if texts[i].isalpha() and len(texts[i + 1]) > 1)
    stop = texts[place][-1] + texts[place + 1][:1]
    with with_prompt(bundle_copy, stop_strings=[stop]) as session:
        steps = list(session.generate(QUESTION, picture, max_tokens=30))
    text = "".join(step.text for step in steps)
    assert steps[-1].finish == "stop_string"
    assert stop not in text
    assert text == "".join(texts).split(stop)[0]


@pytest.mark.parametrize("key", ["stop_ids", "eos_id"])
def test_a_stop_id_ends_the_answer_and_is_its_last_step(
    bundle_copy: Path,
    picture: Image.Image,
    sentences: sentencepiece.SentencePieceProcessor,
    key: str,
) -> None:
    with load(bundle_copy, threads=1) as session:
        free = list(session.generate(QUESTION, picture, max_tokens=8))
    stop = free[5].token_id
    place = ids_of(free).index(stop)
    if key == "stop_ids":
        session = with_prompt(bundle_copy, stop_ids=[stop])
    else:
        path = bundle_copy / "bundle.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        data["model"]["tokenizer"]["eos_id"] = stop
        path.write_text(json.dumps(data), encoding="utf-8")
        session = load(bundle_copy, threads=1)
    with session:
        steps = list(session.generate(QUESTION, picture, max_tokens=8))
    assert ids_of(steps) == ids_of(free)[: place + 1]
    assert steps[-1].finish == "eos"
    assert "".join(step.text for step in steps) == sentences.decode(ids_of(free)[:place])


def test_a_full_context_ends_the_answer(bundle: Path, picture: Image.Image) -> None:
    with load(bundle, threads=1) as session:
        length = len(session.encode(QUESTION)) + 15
    with load(bundle, threads=1, context_tokens=length + 3) as session:
        steps = list(session.generate(QUESTION, picture, max_tokens=50))
    # The prompt leaves room for three tokens to be read; the fourth is only written.
    assert (len(steps), steps[-1].finish) == (4, "context")


def test_a_prompt_longer_than_the_context_is_refused_at_the_call(
    bundle: Path, picture: Image.Image
) -> None:
    with load(bundle, threads=1, context_tokens=30) as session:
        length = len(session.encode(QUESTION)) + 15
        with pytest.raises(EngineError, match=f"takes {length} positions, the context has 30"):
            session.generate(QUESTION, picture)
        with pytest.raises(EngineError, match=f"takes {length} positions, the context has 30"):
            session.logits(QUESTION, picture)


def test_times_are_split_and_add_up(session: Session, picture: Image.Image) -> None:
    steps = list(session.generate(QUESTION, picture, max_tokens=4))
    first = steps[0]
    assert min(first.preprocess_ms, first.tower_ms, first.prefill_ms) > 0
    assert first.decode_ms == 0
    for step in steps[1:]:
        assert step.decode_ms > 0
        assert (step.preprocess_ms, step.tower_ms, step.prefill_ms) == (0, 0, 0)
    assert {step.prompt_positions for step in steps} == {len(session.encode(QUESTION)) + 15}
    assert [step.index for step in steps] == [0, 1, 2, 3]


def test_a_step_is_frozen(session: Session) -> None:
    (step,) = session.generate(QUESTION, max_tokens=1)
    with pytest.raises(AttributeError):
        step.text = "other"
    assert "text" in {field.name for field in fields(step)}


def test_an_answer_whose_beginning_was_forgotten_says_so(
    session: Session, picture: Image.Image
) -> None:
    steps = session.generate(QUESTION, picture, max_tokens=9)
    next(steps)
    session.forget()
    with pytest.raises(EngineError, match="asked something else while this answer was streaming"):
        next(steps)


def test_an_answer_that_was_overtaken_says_so(session: Session, picture: Image.Image) -> None:
    steps = session.generate(QUESTION, picture, max_tokens=9)
    next(steps)
    session.logits(QUESTION)
    with pytest.raises(EngineError, match="asked something else while this answer was streaming"):
        next(steps)


def test_an_answer_left_half_read_does_not_disturb_the_next(
    session: Session, picture: Image.Image
) -> None:
    whole = ids_of(list(session.generate(QUESTION, picture, max_tokens=9)))
    next(session.generate("left", picture, max_tokens=9))
    assert ids_of(list(session.generate(QUESTION, picture, max_tokens=9))) == whole


def test_bad_requests_are_refused_at_the_call(session: Session, picture: Image.Image) -> None:
    with pytest.raises(EngineError, match="max_tokens is 0"):
        session.generate(QUESTION, max_tokens=0)
    with pytest.raises(EngineError, match="temperature is -1"):
        session.generate(QUESTION, temperature=-1)
    with pytest.raises(SpecError, match="1 <image> markers for 2 images"):
        session.generate("<image> left", [picture, picture])
    with pytest.raises(EngineError, match=r"1 image places .*, 0 images were given"):
        session.logits([1, IMAGE_ID])
    with pytest.raises(ImageError, match=r"gone\.png is missing"):
        session.generate(QUESTION, "gone.png")
    with pytest.raises(EngineError, match=r"\[16, 63\], needed: \[T, 64\]"):
        session.logits(QUESTION, np.zeros((16, 63), np.float32))
    with pytest.raises(EngineError, match=r"needed: float32\[N, 3, 28, 28\]"):
        session.logits(QUESTION, np.zeros((28, 28, 3), np.uint8))


def test_a_closed_session_says_so(bundle: Path, picture: Image.Image) -> None:
    with load(bundle, threads=1) as session:
        steps = session.generate(QUESTION, picture)
        next(steps)
    session.close()
    with pytest.raises(EngineError, match="session is closed"):
        next(steps)
    with pytest.raises(EngineError, match="session is closed"):
        session.embed(picture)
    with pytest.raises(EngineError, match="session is closed"):
        session.encode(QUESTION)


def test_two_sessions_answer_side_by_side(bundle: Path, picture: Image.Image) -> None:
    with load(bundle, threads=1) as one, load(bundle, threads=1) as two:
        wanted = ids_of(list(one.generate(QUESTION, picture, max_tokens=6)))
        steps = [one.generate(QUESTION, picture, max_tokens=6), two.generate(QUESTION, picture)]
        mixed = [ids_of([next(steps[0]), next(steps[1])]) for _ in range(6)]
        assert [pair[0] for pair in mixed] == wanted
        assert [pair[1] for pair in mixed] == wanted


def test_sessions_are_freed_and_opened_again(bundle: Path) -> None:
    before = threading.active_count()
    for _ in range(5):
        with load(bundle, threads=1) as session:
            session.logits(QUESTION)
    assert threading.active_count() == before
