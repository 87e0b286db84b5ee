"""The byte-level tokenizer: Phi-2's files, complete over bytes, and the same on every run."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CodeGenTokenizer, CodeGenTokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from mllm_export.export.reference.byte_bpe import END_OF_TEXT, added_texts, write_byte_bpe

VOCAB = 400
FILES = {
    "added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    write_byte_bpe(made, VOCAB)
    return made


@pytest.fixture(scope="module")
def fast(folder: Path) -> CodeGenTokenizerFast:
    return CodeGenTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def slow(folder: Path) -> CodeGenTokenizer:
    return CodeGenTokenizer.from_pretrained(folder)


def test_the_files_are_those_of_phi_2(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES


def test_the_same_corpus_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_byte_bpe(tmp_path, VOCAB)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_ids_run_bytes_pieces_end_of_text_runs(folder: Path) -> None:
    vocab: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    added: dict[str, int] = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    assert sorted(vocab, key=lambda piece: vocab[piece])[:256] == sorted(
        bytes_to_unicode().values()
    )
    assert vocab[END_OF_TEXT] == len(vocab) - 1
    assert list(added) == added_texts()
    assert list(added.values()) == list(range(len(vocab), VOCAB))


def test_the_end_of_text_begins_ends_and_stands_for_the_unknown(
    fast: CodeGenTokenizerFast, folder: Path
) -> None:
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    end = vocab[END_OF_TEXT]
    assert (fast.bos_token_id, fast.eos_token_id, fast.unk_token_id) == (end, end, end)
    assert fast("red").input_ids[0] != end


def test_runs_of_blanks_and_tabs_are_one_token(fast: CodeGenTokenizerFast) -> None:
    first = len(fast) - len(added_texts())
    assert fast(" " * 31).input_ids == [first]
    assert fast("\t\t").input_ids == [len(fast) - 1]


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_comes_back(fast: CodeGenTokenizerFast, text: str) -> None:
    ids = fast(text).input_ids
    assert fast.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "Where is the digit?",
        "if x:\n        y\t\t= 1",
        "naïve 漢字 🙂",
        "a" + " " * 40 + "b",
        f"red{END_OF_TEXT}",
    ],
)
def test_vocab_and_merges_say_what_tokenizer_json_says(
    fast: CodeGenTokenizerFast, slow: CodeGenTokenizer, text: str
) -> None:
    assert slow(text).input_ids == fast(text).input_ids
