"""SentencePiece tokenizers: special ids, padding, agreement with the original, bad files."""

import json

import pytest
from sentencepiece import sentencepiece_model_pb2

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.decoder_plan import general_fields, gguf_tensors, plan_decoder_tensors
from mllm_export.export.formats.gguf import write_decoder
from mllm_export.export.parts import DECODERS, TOKENIZERS
from mllm_export.export.random_checkpoint import random_tensor
from mllm_export.export.random_tokenizer import write_tokenizer
from mllm_export.quantize.recipe import load_recipe

SENTENCEPIECE = TOKENIZERS["sentencepiece"]
PIECES = 480
NASTY = [
    "",
    " ",
    "   three blanks, and two at the end  ",
    "\n",
    "USER: ",
    "line one\nline two\n\n\ttabbed",
    "0123456789 3.14159 -1e-5",
    "naïve café — “quotes” … ﬁ ligature Ⅷ",
    "日本語とЕвропа και עברית",
    "🙂👩‍👩‍👧 flags 🇫🇷",
    "\u2581 the blank's own sign \u2581\u2581",
    "zero\u200bwidth, no\u00a0break, bell\x07",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "print('x')  # {}[]<>|\\^`~",
]


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path, PIECES)
    return tmp_path


def config(**changes):
    return Config({"vocab_size": 512, **changes}, "config.json")


def fields(folder, vocab=512, **changes):
    spec = SENTENCEPIECE.read_spec(folder, config(vocab_size=vocab, **changes))
    found = SENTENCEPIECE.metadata(folder, spec, vocab)
    return {field.key.removeprefix("tokenizer.ggml."): field.value for field in found}


def edit(folder, name, **changes):
    path = folder / name
    table = json.loads(path.read_text()) if path.is_file() else {}
    table.update(changes)
    kept = {k: v for k, v in table.items() if v != "absent"}
    path.write_text(json.dumps(kept))


def edit_model(folder, change):
    path = folder / "tokenizer.model"
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    change(proto)
    path.write_bytes(proto.SerializeToString())


def test_rows_past_the_tokenizers_own_are_padding(folder):
    found = fields(folder)
    assert SENTENCEPIECE.read_spec(folder, config()).vocab == PIECES
    assert found["tokens"][PIECES:] == tuple(f"[PAD{i}]" for i in range(PIECES, 512))
    assert set(found["token_type"][PIECES:]) == {5}
    assert set(found["scores"][PIECES:]) == {-10000.0}


def test_types_are_those_of_the_pieces(folder):
    found = fields(folder)
    types = dict(zip(found["tokens"], found["token_type"], strict=True))
    assert [types[t] for t in ("<unk>", "<s>", "</s>", "<0x0A>", "\u2581")] == [2, 3, 3, 6, 1]


@pytest.mark.parametrize("source", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("form", [lambda t: t, lambda t: {"content": t, "lstrip": False}])
def test_the_tokenizers_files_outrank_config_json(folder, source, form):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(folder, name, bos_token="absent", eos_token="absent", pad_token="absent")
    edit(folder, source, bos_token=form("<s>"), eos_token=form("</s>"), pad_token=form("<unk>"))
    spec = SENTENCEPIECE.read_spec(folder, config(bos_token_id=5, eos_token_id=6, pad_token_id=7))
    assert (spec.bos_id, spec.eos_id, spec.unk_id, spec.pad_id) == (1, 2, 0, 0)


def test_config_json_then_the_model_itself_name_what_the_files_do_not(folder):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    spec = SENTENCEPIECE.read_spec(folder, config(eos_token_id=7, pad_token_id=-1))
    assert (spec.bos_id, spec.eos_id, spec.unk_id, spec.pad_id) == (1, 7, 0, None)
    assert spec.add_bos
    assert "padding_token_id" not in fields(folder)


def test_flags_come_from_tokenizer_config(folder):
    edit(folder, "tokenizer_config.json", add_bos_token=False, add_eos_token=True)
    found = fields(folder)
    assert (found["add_bos_token"], found["add_eos_token"]) == (False, True)
    assert "add_space_prefix" not in found
    edit(folder, "tokenizer_config.json", add_prefix_space=False)
    assert fields(folder)["add_space_prefix"] is False


def test_a_model_without_the_leading_blank_says_so(folder):
    edit_model(folder, lambda p: setattr(p.normalizer_spec, "add_dummy_prefix", False))
    assert fields(folder)["add_space_prefix"] is False


def test_added_tokens_take_their_rows(folder):
    (folder / "added_tokens.json").write_text(json.dumps({"<image>": 481, "<far>": 9999}))
    edit(
        folder,
        "tokenizer_config.json",
        added_tokens_decoder={
            "482": {"content": "<end>", "special": True},
            "483": {"content": "two\u2581words", "special": False},
            "484": {"content": "<|looks|>", "special": False},
        },
    )
    found = fields(folder)
    assert found["tokens"][480:485] == ("[PAD480]", "<image>", "<end>", "two words", "<|looks|>")
    assert found["token_type"][480:485] == (5, 4, 3, 4, 3)
    assert found["scores"][481:485] == (-1000.0,) * 4
    assert SENTENCEPIECE.read_spec(folder, config()).vocab == 485


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model is missing"),
        (lambda f: (f / "tokenizer.model").write_bytes(b""), "not a whole SentencePiece model"),
        (lambda f: (f / "tokenizer.model").write_bytes(b"\x80\x04junk" * 9), "not a SentencePiece"),
        (
            lambda f: (f / "tokenizer.model").write_bytes(
                (f / "tokenizer.model").read_bytes()[:1000]
            ),
            "SentencePiece model",
        ),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), "not valid JSON"),
        (
            lambda f: edit(f, "tokenizer_config.json", eos_token="<none>"),
            "eos_token '<none>' is not in the vocabulary",
        ),
        (
            lambda f: edit(f, "tokenizer_config.json", added_tokens_decoder={"x": {}}),
            "entry 'x' is no token",
        ),
        (lambda f: (f / "added_tokens.json").write_text('{"<a>": "b"}'), "'<a>' has id 'b'"),
        (lambda f: edit(f, "tokenizer_config.json", add_bos_token="yes"), "'add_bos_token' is"),
    ],
)
def test_a_broken_file_is_named(folder, change, words):
    change(folder)
    with pytest.raises(CheckpointError, match=words):
        SENTENCEPIECE.read_spec(folder, config())


def test_more_pieces_than_rows_is_another_models_tokenizer(folder):
    with pytest.raises(CheckpointError, match=r"has 480 pieces, config.json's vocab_size is 479"):
        SENTENCEPIECE.read_spec(folder, config(vocab_size=479))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: setattr(p.trainer_spec, "model_type", 1), "model type 1 is not BPE"),
        (
            lambda p: setattr(p.normalizer_spec, "precompiled_charsmap", b"\x01"),
            "normalises text by 'identity'",
        ),
        (
            lambda p: setattr(p.normalizer_spec, "remove_extra_whitespaces", True),
            "drops extra blanks",
        ),
    ],
)
def test_what_llama_cpp_would_cut_differently_is_refused(folder, change, words):
    edit_model(folder, change)
    with pytest.raises(UnsupportedModelError, match=words):
        SENTENCEPIECE.read_spec(folder, config())


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """transformers' slow tokenizer, and llama.cpp with a file of ours."""
    from llama_cpp import Llama
    from transformers import LlamaTokenizer

    folder = tmp_path_factory.mktemp("both")
    write_tokenizer(folder, PIECES)
    decoder, recipe = DECODERS["llama"], load_recipe("f16")
    spec = decoder.tiny()
    shapes = decoder.parameters(spec)
    tensors = gguf_tensors(spec, plan_decoder_tensors(spec, recipe, {n: n for n in shapes}))
    ids = SENTENCEPIECE.read_spec(folder, config())
    keys = (
        *general_fields("tiny", "F16", tensors),
        *decoder.metadata(spec),
        *SENTENCEPIECE.metadata(folder, ids, spec.vocab),
    )
    path = folder / "x.gguf"
    write_decoder(path, keys, tensors, lambda name: random_tensor(name, shapes[name], 0))
    ours = Llama(str(path), n_ctx=32, verbose=False)
    yield LlamaTokenizer.from_pretrained(folder), ours
    ours.close()


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_llama_cpp_cuts_text_as_the_original_does(both, text):
    original, ours = both
    assert ours.tokenize(text.encode(), add_bos=True) == original(text).input_ids
