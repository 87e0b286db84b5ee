"""Byte-level BPE tokenizers: special ids, types, agreement with the original, bad files."""

import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.parts import TOKENIZERS

sys.path.insert(0, str(Path(__file__).parents[1]))

from phi2_vocabulary import END, HASH, find_vocabulary, hash_of, write_phi2_tokenizer

BPE = TOKENIZERS["bpe"]
ROWS = 512
NASTY = [
    *("", " ", "  ", " " * 17, " " * 31, " " * 33, " " * 64, "\n", "\n\n\n", "\t", "\t" * 12),
    *(" \n ", "\r\n", "\x00", "a\x00b", "\x7f", "a", " a", "  a", "a ", "a  ", "   a   b    "),
    *("0123456789 3.14159 -1e-5 0x1F 1,000,000", "\u0661٢٣", "½ ² Ⅷ", "x" * 300, "ab" * 200),
    *("I've he's 'RE we'll don't I'M they'd ''' 's't", "USER: ", "\nWhat is it? ASSISTANT:"),
    *(END, f"a{END}", f"{END}b", f"a {END} b", f"{END}{END}", f"\n{END}\n", "<|endoftext", "<|im"),
    *("</s>", "<s>", "<unk>", "<image>", "<im_patch>", "[PAD511]", "[PAD51000]", "<0x41>"),
    *(
        "def f(x):\n    if x:\n        return [y**2 for y in x]\n\n",
        "\tif (a != b) {\n\t\tc++;\n\t}",
    ),
    *("print('x')  # {}[]<>|\\^`~", '<html>\n  <body class="a b">\n    </body>', "a\\nb"),
    *(
        "naïve café — “quotes” … ﬁ ligature",
        "cafe\u0301 e\u0301",
        "İ \u0131 ß ẞ",
        "ΑΒΓ где ما هذا؟",
    ),
    *(
        "図形赤い 漢字かな交じり文。",
        "图片里有什么\uff1f",
        "이것은 무엇입니까",
        "\u3000全角\u3000空白",
    ),
    *(
        "🙂",
        "a🙂b",
        "👩\u200d👩\u200d👧",
        "🏳️\u200d🌈 flags 🇫🇷🇩🇪",
        "\U0010ffff",
        "\U0001f469\U0001f3fd",
    ),
    *(
        "zero\u200bwidth",
        "no\u00a0break\u00a0\u00a0two",
        "soft\u00adhyphen",
        "\ufeffmark",
        "\u2028x",
    ),
    *(
        "\u1680ogham",
        "\u180emongol",
        "\u0085next",
        "\u2003em \u2003 em",
        "a\u000bb\u000cc",
        "\ufffd",
    ),
    *(
        "ಕನ್ನಡ हिन्दी ไทย",
        "\u0301\u0301alone",
        "\U0001d518\U0001d52b\U0001d526 \U0001d7d9\U0001d7da\U0001d7db",
        "\U000e0041tag",
        "॥१२३॥",
        "a\u0600b",
    ),
]


def drawn(count):
    source = random.Random(3)
    parts = [
        *"abcXYZ 0129.,:;'\"<>|/_\n\t",
        *("  ", "    ", "\t\t", "'s", "'ll", END, "<|", "|>"),
        *(
            "é",
            "ß",
            "図",
            "ど",
            "🙂",
            "\u0301",
            "\u200d",
            "\u00a0",
            "\u3000",
            "\u0661",
            "Ⅷ",
            "²",
            "ﬁ",
        ),
        *("the", " quick", "USER:", "return"),
    ]
    return ["".join(source.choices(parts, k=source.randint(1, 40))) for _ in range(count)]


def config(**changes):
    return Config({"vocab_size": ROWS, "bos_token_id": 1, "eos_token_id": 2, **changes}, "c.json")


@pytest.fixture
def folder(tmp_path):
    BPE.write_random(tmp_path, ROWS)
    return tmp_path


def keys_of(folder, rows=ROWS):
    spec = BPE.read_spec(folder, config(vocab_size=rows))
    return {
        f.key.removeprefix("tokenizer.ggml."): f.value for f in BPE.metadata(folder, spec, rows)
    }


def change(folder, file, **keys):
    data = json.loads((folder / file).read_text())
    data.update(keys)
    (folder / file).write_text(json.dumps(data))
    return folder


def write_vocabulary(path, fields, rows=ROWS):
    """A GGUF file of one small layer, so that llama.cpp takes its vocabulary."""
    from mllm_export.export.decoder_plan import general_fields, gguf_tensors, plan_decoder_tensors
    from mllm_export.export.formats.gguf import write_decoder
    from mllm_export.export.parts import DECODERS
    from mllm_export.export.random_checkpoint import random_tensor
    from mllm_export.quantize.recipe import load_recipe

    decoder, recipe = DECODERS["phi"], load_recipe("f16")
    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    plain = {**tiny, "num_attention_heads": 2, "vocab_size": rows, "max_position_embeddings": 64}
    spec = decoder.read_spec(Config(plain, "config.json"))
    shapes = decoder.parameters(spec)
    tensors = gguf_tensors(spec, plan_decoder_tensors(spec, recipe, {n: n for n in shapes}))
    keys = (*general_fields("tiny", "F16", tensors), *decoder.metadata(spec), *fields)
    write_decoder(path, keys, tensors, lambda name: random_tensor(name, shapes[name], 0))
    return path


def open_engine(folder, rows, fields=None):
    from mllm_export.runtimes.decoder.llama_cpp import LlamaCppDecoder

    ids = BPE.read_spec(folder, config(vocab_size=rows))
    path = write_vocabulary(folder / "x.gguf", fields or BPE.metadata(folder, ids, rows), rows)
    spec = SimpleNamespace(decoder=SimpleNamespace(vocab=rows, width=32))
    return LlamaCppDecoder(path, spec, 64, 1, "f16")


def test_special_ids_come_from_the_tokenizer_for_the_configs_are_wrong(folder):
    spec = BPE.read_spec(folder, config())
    end = json.loads((folder / "vocab.json").read_text())[END]
    assert (spec.bos_id, spec.eos_id, spec.unk_id, spec.pad_id) == (end, end, end, None)
    assert not spec.add_bos
    assert spec.decoding == "bytes"
    assert (spec.kind, spec.file) == ("bpe", "vocab.json")


def test_every_row_has_a_token_of_its_kind(folder):
    keys = keys_of(folder)
    tokens, types = keys["tokens"], keys["token_type"]
    assert len(tokens) == len(types) == ROWS
    assert types[tokens.index(END)] == 3
    assert {types[tokens.index(" " * n)] for n in range(2, 32)} == {4}
    assert {types[tokens.index("\t" * n)] for n in range(2, 10)} == {4}
    assert [t for t, kind in zip(tokens, types, strict=True) if kind == 5] == [
        f"[PAD{row}]" for row in range(BPE.read_spec(folder, config()).vocab, ROWS)
    ]
    assert types[0] == 1


def test_the_words_are_cut_as_upstream_says_for_the_class(folder):
    assert keys_of(folder)["pre"] == "phi-2"
    change(folder, "tokenizer_config.json", tokenizer_class="GPT2TokenizerFast")
    assert keys_of(folder)["pre"] == "gpt-2"


def test_one_file_and_several_say_the_same(folder, tmp_path):
    from transformers import AutoTokenizer

    whole = tmp_path / "whole"
    AutoTokenizer.from_pretrained(folder).save_pretrained(whole)
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (whole / name).unlink(missing_ok=True)
    assert BPE.read_spec(whole, config()).file == "tokenizer.json"
    assert keys_of(whole) == keys_of(folder)


def test_two_writings_are_equal_to_the_byte(folder, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    BPE.write_random(again, ROWS)
    for file in again.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes()


@pytest.mark.parametrize(
    ("file", "keys", "error", "words"),
    [
        ("vocab.json", {"a": -1}, CheckpointError, "token 'a' has id -1"),
        ("vocab.json", {"a": "1"}, CheckpointError, "token 'a' has id '1'"),
        ("vocab.json", {"far": 512}, CheckpointError, "513 tokens, config.json's vocab_size"),
        ("added_tokens.json", {"x": 1.5}, CheckpointError, "token 'x' has id 1.5"),
        ("tokenizer_config.json", {"eos_token": "<no>"}, CheckpointError, "eos_token '<no>'"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Qwen2Tokenizer"},
            UnsupportedModelError,
            "'Qwen2Tokenizer' is not known",
        ),
        (
            "tokenizer_config.json",
            {"add_prefix_space": True},
            UnsupportedModelError,
            "add_prefix_space",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"500": {"content": "<m>", "lstrip": True}}},
            UnsupportedModelError,
            "'<m>' has 'lstrip'",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": {"content": "<m>"}}},
            CheckpointError,
            "has id 'x'",
        ),
    ],
)
def test_what_does_not_fit_is_named(folder, file, keys, error, words):
    with pytest.raises(error, match=words):
        BPE.read_spec(change(folder, file, **keys), config())


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file} is missing"):
        BPE.read_spec(folder, config())


def test_a_merge_that_is_no_pair_is_shown(folder):
    (folder / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(CheckpointError, match="merge 'a b c' is no pair"):
        BPE.read_spec(folder, config())


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("normalizer",), {"type": "NFKC"}, "has a normalizer other than NFC"),
        (("model", "type"), "Unigram", "type 'Unigram', needed: BPE"),
        (("model", "byte_fallback"), True, "'byte_fallback' is true"),
        (("model", "ignore_merges"), True, "'ignore_merges' is true"),
        (("model", "end_of_word_suffix"), "</w>", "'end_of_word_suffix'"),
        (("pre_tokenizer",), {"type": "Whitespace"}, "type 'Whitespace'"),
        (("pre_tokenizer", "use_regex"), False, "GPT-2's words"),
        (("pre_tokenizer", "add_prefix_space"), True, "add_prefix_space is true"),
    ],
)
def test_steps_that_llama_cpp_lacks_are_refused(folder, path, value, words):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UnsupportedModelError, match=words):
        BPE.read_spec(folder, config())


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    BPE.write_random(folder, ROWS)
    engine = open_engine(folder, ROWS)
    yield AutoTokenizer.from_pretrained(folder), engine
    engine.close()


def test_llama_cpp_cuts_text_as_the_original_does(tiny_pair):
    original, engine = tiny_pair
    for text in [*NASTY, *drawn(500)]:
        assert engine.tokenize(text) == original(text).input_ids, ascii(text)


def test_pieces_join_to_the_originals_text(tiny_pair):
    original, engine = tiny_pair
    for text in [*NASTY, *drawn(100)]:
        ids = original(text).input_ids
        joined = b"".join(engine.piece(one) for one in ids).decode("utf-8")
        kept = original.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert joined == kept, ascii(text)


def test_ids_that_are_no_utf8_give_the_same_marks(tiny_pair):
    original, engine = tiny_pair
    ids = np.random.default_rng(0).integers(0, 256, (200, 12))
    from mllm_export.runtimes.text_stream import TextStream

    for row in ids.tolist():
        stream = TextStream((), "bytes")
        text = "".join(stream.feed(engine.piece(one)) for one in row) + stream.flush()
        assert text == original.decode(row, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module", params=["several files", "tokenizer.json"])
def phi2_pair(request, tmp_path_factory):
    from transformers import AutoTokenizer

    vocabulary = find_vocabulary()
    if vocabulary is None:
        if os.environ.get("MLLM_REQUIRE_UPSTREAM"):
            pytest.fail("build/upstream is missing and MLLM_REQUIRE_UPSTREAM is set")
        pytest.skip("build/upstream is missing; make upstream")
    whole = request.param == "tokenizer.json"
    folder = write_phi2_tokenizer(tmp_path_factory.mktemp("phi2"), vocabulary, whole)
    engine = open_engine(folder, 51200)
    yield AutoTokenizer.from_pretrained(folder), engine
    engine.close()


@pytest.mark.upstream
def test_phi_2s_own_vocabulary_is_cut_as_the_original_does(phi2_pair):
    original, engine = phi2_pair
    assert hash_of(original) == HASH
    for text in [*NASTY, *drawn(2000)]:
        assert engine.tokenize(text) == original(text).input_ids, ascii(text)


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("pre", lambda _: "llama-bpe"),
        ("pre", lambda _: "qwen2"),
        ("token_type", lambda value: tuple(1 if kind == 4 else kind for kind in value)),
        ("merges", lambda value: tuple(reversed(value))),
    ],
    ids=["digits cut by three", "digits apart", "runs as words", "merges turned"],
)
def test_the_corpus_sees_a_planted_fault(key, fault, folder, tiny_pair):
    original, _ = tiny_pair
    name = f"tokenizer.ggml.{key}"
    fields = [
        replace(field, value=fault(field.value)) if field.key == name else field
        for field in BPE.metadata(folder, BPE.read_spec(folder, config()), ROWS)
    ]
    engine = open_engine(folder, ROWS, fields)
    differ = [text for text in NASTY if engine.tokenize(text) != original(text).input_ids]
    engine.close()
    assert differ
