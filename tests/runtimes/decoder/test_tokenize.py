"""llama.cpp's tokenizer against the one the original authors load: transformers' slow LLaMA."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece
from transformers import LlamaTokenizer

from mllm_export.errors import EngineError
from mllm_export.runtimes.decoder.llama_cpp import LlamaCppDecoder

SPECIAL = ("<s>", "</s>", "<unk>")

NASTY = [
    *("", " ", "  ", " " * 17, "\n", "\n\n", "\t", " \n ", "\r\n", "\x00", "a\x00b", "\x7f"),
    *("a", " a", "  a", "a ", "a  ", "the red  circle   left", "a" * 500, "123 4567", "١٢٣"),
    *("</s>", "a</s>", "</s>a", "a</s> b", "a </s>b", "</s></s>", " </s> ", "\n</s>\n"),
    *("<s>", "<s>a", "<unk>", "x<unk>y", "a<s>b</s>c<unk>d", "</s", "</ s>", "<S>", "<pad>"),
    *("<0x0A>", "<0x41>", "a<0x41>b", "<0x4", "<image>", "[INST]", "\\n"),
    *("▁", "▁▁", "a▁b", "▁a", " ▁a", "▁</s>", "\u00a0", "\u3000図形", "\u200b", "\ufeffa"),
    *("図形赤い", "漢字かな交じり文", "naïve café", "cafe\u0301", "ﬁ", "İ", "ΑΒΓ", "\ufffd"),
    *(
        "😀",
        "a😀b",
        "👩\u200d👩\u200d👧",
        "\U0010ffff",
        "\u2028",
        "USER: ",
        "\nwhat is? ASSISTANT:",
    ),
]


def drawn(count: int) -> list[str]:
    source = random.Random(1)
    parts = [*"abc  \n<>/s0xA41▁é図😀.:", *SPECIAL, "<0x41>", "USER:", "  ", "circle"]
    return ["".join(source.choices(parts, k=source.randint(1, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def model_file(tokenizer_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(tokenizer_model)
    return path


@pytest.fixture(scope="module")
def slow(model_file: Path) -> LlamaTokenizer:
    return LlamaTokenizer(str(model_file), legacy=True)


def test_ids_equal_the_slow_tokenizers_on_nasty_strings(
    decoder: LlamaCppDecoder, slow: LlamaTokenizer
) -> None:
    for text in [*NASTY, *drawn(2000)]:
        bos, *wanted = slow(text).input_ids
        assert bos == 1
        assert decoder.tokenize(text) == wanted, repr(text)


def test_the_corpus_would_show_a_tokenizer_that_does_not_know_special_tokens(
    decoder: LlamaCppDecoder, sentences: sentencepiece.SentencePieceProcessor
) -> None:
    differ = [text for text in NASTY if decoder.tokenize(text) != sentences.encode(text)]
    assert differ
    assert all(any(mark in text for mark in SPECIAL) for text in differ)


def test_newer_transformers_behaviour_differs_only_behind_a_special_token(
    decoder: LlamaCppDecoder, model_file: Path
) -> None:
    """`"legacy": false` leaves out the blank behind a special token; llama.cpp puts it there.

    So a bundle of such a checkpoint reads a typed `</s>` or `<s>` followed by text with one
    blank more. Text without special tokens gives the same ids in both.
    """
    newer = LlamaTokenizer(str(model_file), legacy=False)
    differ = [
        text
        for text in [*NASTY, *drawn(2000)]
        if decoder.tokenize(text) != newer(text).input_ids[1:]
    ]
    assert "</s>a" in differ
    assert all(any(mark in text for mark in SPECIAL) for text in differ)


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb"])
def test_half_a_character_is_refused_with_its_place(decoder: LlamaCppDecoder, text: str) -> None:
    with pytest.raises(EngineError, match=rf"half a character, .* at place {len(text) // 2}"):
        decoder.tokenize(text)


def test_pieces_are_bytes_and_control_tokens_are_silent(
    decoder: LlamaCppDecoder, sentences: sentencepiece.SentencePieceProcessor
) -> None:
    assert [decoder.piece(token) for token in (0, 1, 2)] == [b"", b"", b""]
    assert decoder.piece(sentences.piece_to_id("<0xE5>")) == b"\xe5"
    for token in range(259, 800):
        assert decoder.piece(token) == sentences.id_to_piece(token).replace("▁", " ").encode()
    with pytest.raises(EngineError, match="token id -1 is outside"):
        decoder.piece(-1)


def test_a_long_piece_is_given_whole(decoder: LlamaCppDecoder) -> None:
    """Longer than the first buffer: 17 blanks would fit, so pieces are asked for one by one."""
    ids = decoder.tokenize("circle " * 40)
    text = b"".join(decoder.piece(token) for token in ids)
    assert text == b" " + b"circle " * 40
