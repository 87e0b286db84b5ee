"""Streaming: nothing shown that must be taken back, nothing lost."""

from __future__ import annotations

import random

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from mllm_export.runtimes.decoder.llama_cpp import LlamaCppDecoder
from mllm_export.runtimes.stopping import StopStrings
from mllm_export.runtimes.text_stream import TextStream


def shown(stops: tuple[str, ...], parts: list[str]) -> tuple[list[str], bool]:
    stream = StopStrings(stops)
    out = [stream.feed(part) for part in parts]
    return [*out, stream.flush()], stream.stopped


def test_a_stop_string_across_parts_is_never_shown() -> None:
    assert shown(("</s>",), ["one <", "/", "s", "> two"]) == (["one ", "", "", "", ""], True)


def test_a_false_start_is_shown_later() -> None:
    assert shown(("</s>",), ["a<", "/", "b"]) == (["a", "", "</b", ""], False)
    assert shown(("</s>",), ["a</s"]) == (["a", "</s"], False)


def test_the_earliest_of_several_stop_strings_ends_the_text() -> None:
    assert shown(("###", "END"), ["one END ###"]) == (["one ", ""], True)
    assert shown(("ab", "b"), ["xab"]) == (["x", ""], True)


def test_nothing_comes_after_a_stop() -> None:
    stream = StopStrings(("b",))
    assert (stream.feed("ab"), stream.feed("c"), stream.flush()) == ("a", "", "")


def test_no_stop_strings_hold_nothing_back() -> None:
    assert shown(("",), ["a<"]) == (["a<", ""], False)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_however_text_is_cut_the_result_is_the_same(text: str, stops: list[str]) -> None:
    cut = random.Random(text)
    parts: list[str] = []
    rest = text
    while rest:
        length = cut.randint(1, 3)
        parts, rest = [*parts, rest[:length]], rest[length:]
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    out, stopped = shown(tuple(stops), parts)
    assert stopped == bool(ends)
    assert "".join(out) == (text[: min(ends)[1]] if ends else text)


def test_a_character_in_four_bytes_is_shown_when_it_is_whole() -> None:
    stream = TextStream(())
    assert [stream.feed(bytes([byte])) for byte in "😀".encode()] == ["", "", "", "😀"]


def test_a_character_that_never_ends_becomes_marks() -> None:
    stream = TextStream(())
    assert stream.feed(b"a\xf0\x9f") == "a"
    assert stream.flush() == "\ufffd\ufffd"


def test_the_first_blank_is_dropped_and_no_other() -> None:
    stream = TextStream(())
    parts = [stream.feed(piece) for piece in (b"", b" one", b" two")]
    assert parts == ["", "one", " two"]


@pytest.mark.parametrize("seed", range(20))
def test_any_ids_give_the_text_that_sentencepiece_gives(
    decoder: LlamaCppDecoder, sentences: sentencepiece.SentencePieceProcessor, seed: int
) -> None:
    """Bytes that are no UTF-8 are frequent here: a third of the ids are single bytes."""
    ids = random.Random(seed).choices(range(3, 800), k=60)
    stream = TextStream(())
    text = "".join(stream.feed(decoder.piece(token)) for token in ids) + stream.flush()
    assert text == sentences.decode(ids)
