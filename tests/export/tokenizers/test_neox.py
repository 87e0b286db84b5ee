"""GPT-NeoX's tokenizer: a text is brought to NFC by us, cut into words by llama.cpp."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unicodedata import normalize

import pytest

from mllm_export.export.parts import TOKENIZERS

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from neox_vocabulary import TOKENS, find_neox, write_neox_tokenizer
from test_bpe import NASTY, config, drawn, open_engine

BPE = TOKENIZERS["bpe"]
ROWS = 512
USED = 476
"""The text that the merges are learned from gives no more."""


def original_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neox")
    BPE.write_random(folder, ROWS - 3, "GPTNeoXTokenizer")
    engine = open_engine(folder, ROWS)
    yield SimpleNamespace(folder=folder, original=original_of(folder), engine=engine)
    engine.close()


def keys_of(folder, rows=ROWS):
    spec = BPE.read_spec(folder, config(vocab_size=rows))
    fields = BPE.metadata(folder, spec, rows)
    return {f.key.removeprefix("tokenizer.ggml."): f.value for f in fields}


def test_special_ids_and_settings_are_the_published_ones(pair):
    spec = BPE.read_spec(pair.folder, config(vocab_size=ROWS))
    assert (spec.bos_id, spec.eos_id, spec.unk_id, spec.pad_id) == (0, 0, 0, None)
    assert (spec.add_bos, spec.normalizer, spec.decoding) == (False, "NFC", "bytes")
    assert (spec.file, spec.vocab) == ("tokenizer.json", USED)
    keys = keys_of(pair.folder)
    assert keys["pre"] == "olmo"
    assert keys["tokens"][USED] == f"[PAD{USED}]"
    assert keys["token_type"][:3] == (3, 3, 1)
    assert set(keys["token_type"][USED - 23 : USED]) == {4}
    assert set(keys["token_type"][USED:]) == {5}


def test_two_writings_are_equal_to_the_byte(pair, tmp_path):
    BPE.write_random(tmp_path, ROWS - 3, "GPTNeoXTokenizer")
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (pair.folder / file.name).read_bytes()


def test_text_in_nfc_is_cut_as_the_original_does(pair):
    for text in [*NASTY, *drawn(500)]:
        found = pair.engine.tokenize(normalize("NFC", text))
        assert found == pair.original(text).input_ids, ascii(text)


def test_without_nfc_some_texts_would_differ(pair):
    differ = [t for t in NASTY if pair.engine.tokenize(t) != pair.original(t).input_ids]
    assert "cafe\u0301 e\u0301" in differ


@pytest.mark.upstream
def test_the_published_vocabulary_is_cut_as_the_original_does(tmp_path):
    vocabulary = find_neox()
    if vocabulary is None:
        if os.environ.get("MLLM_REQUIRE_UPSTREAM"):
            pytest.fail("build/upstream is missing and MLLM_REQUIRE_UPSTREAM is set")
        pytest.skip("build/upstream is missing; make upstream")
    folder = write_neox_tokenizer(tmp_path / "neox", vocabulary)
    engine = open_engine(folder, TOKENS + 3)
    original = original_of(folder)
    for text in [*NASTY, *drawn(2000), "<|user|>\nWhat?<|endoftext|>\n<|assistant|>\n"]:
        assert engine.tokenize(normalize("NFC", text)) == original(text).input_ids, ascii(text)
    engine.close()
