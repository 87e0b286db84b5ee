"""Byte-level BPE of the GPT-2 kind (GPT-2, CodeGen, Phi), as llama.cpp's `gpt2` vocabulary.

Source: llama.cpp, conversion/base.py, TextModel.get_vocab_base and _set_vocab_gpt2;
gguf-py/gguf/vocab.py, SpecialVocab.
"""

from __future__ import annotations

from pathlib import Path

from mllm_export.config import Config, read_json_object
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.parts import GgufField
from mllm_export.export.random_bpe import write_bpe_tokenizer
from mllm_export.export.tokenizers._bpe_files import (
    ADDED,
    MERGES,
    VOCABULARY,
    WHOLE,
    AddedToken,
    BpeFiles,
    read_bpe_files,
)
from mllm_export.export.tokenizers._fields import field, id_fields
from mllm_export.export.tokenizers._special import SETTINGS, SpecialTokens, read_special_tokens
from mllm_export.export.tokenizers._vocabulary import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    looks_special,
)
from mllm_export.spec import TokenizerSpec

_END = "<|endoftext|>"
"""BOS, EOS and unknown token where the files name none. Source: transformers,
CodeGenTokenizer and GPT2Tokenizer."""

_PRE = {"CodeGenTokenizer": "phi-2", "GPT2Tokenizer": "gpt-2", "GPTNeoXTokenizer": "olmo"}
"""Published class to llama.cpp's name of how a text is cut into words. All cut alike; GPT-NeoX
brings a text to NFC before, which llama.cpp leaves to its caller. Upstream knows it by the hash of
its ids, and calls it by the last of the models that share it.
Source: llama.cpp, conversion/base.py, get_vocab_base_pre; src/llama-vocab.cpp, load."""


class Bpe:
    """`tokenizer.json`, or `vocab.json` with `merges.txt`, and the JSON files beside them."""

    files = (WHOLE, VOCABULARY, MERGES, ADDED, *SETTINGS)

    def read_spec(self, folder: Path, config: Config) -> TokenizerSpec:
        """Files and special ids, from the tokenizer's own files alone.

        config.json is asked for nothing but the number of rows: LLaVA-Phi's says BOS 1 and EOS 2,
        which are '"' and '#'.

        Raises: CheckpointError for a broken file or more tokens than the model has rows,
        UnsupportedModelError for a kind of tokenizer that llama.cpp would not reproduce.
        """
        read = read_bpe_files(folder)
        _pre_tokenizer(folder, read)
        rows = config.positive("vocab_size")
        used = _used_rows(read)
        if used > rows:
            raise CheckpointError(
                f"{folder / read.file} has {used} tokens, config.json's vocab_size is {rows}; "
                "is the tokenizer another model's?"
            )
        special = _special(folder, read)
        end = _all_ids(read).get(_END)
        return TokenizerSpec(
            kind="bpe",
            file=read.file,
            vocab=used,
            bos_id=_required(folder, "bos", special.bos_id, end),
            eos_id=_required(folder, "eos", special.eos_id, end),
            unk_id=_required(folder, "unk", special.unk_id, end),
            pad_id=special.pad_id,
            add_bos=special.add_bos,
            normalizer=read.normalizer,
            decoding="bytes",
        )

    def metadata(self, folder: Path, spec: TokenizerSpec, vocab: int) -> tuple[GgufField, ...]:
        """tokenizer.ggml.* keys; rows that no token claims are padding."""
        read = read_bpe_files(folder)
        special = _special(folder, read)
        tokens, types = _rows(read, spec, vocab)
        return (
            field("model", "gpt2", "STRING"),
            field("pre", _pre_tokenizer(folder, read), "STRING"),
            field("tokens", tokens, "ARRAY"),
            field("token_type", types, "ARRAY"),
            field("merges", read.merges, "ARRAY"),
            *id_fields(spec),
            field("add_bos_token", spec.add_bos, "BOOL"),
            field("add_eos_token", special.add_eos, "BOOL"),
        )

    def write_random(self, folder: Path, rows: int, published: str = "") -> None:
        """CodeGen's settings, the last rows without a token as in Phi-2; or GPT-NeoX's."""
        write_bpe_tokenizer(folder, rows, published)


def _all_ids(read: BpeFiles) -> dict[str, int]:
    return {**read.ids, **{token.text: token.token_id for token in read.added}}


def _used_rows(read: BpeFiles) -> int:
    return 1 + max(_all_ids(read).values())


def _special(folder: Path, read: BpeFiles) -> SpecialTokens:
    return read_special_tokens(folder, None, _all_ids(read), adds_bos=False)


def _required(folder: Path, name: str, named: int | None, end: int | None) -> int:
    token_id = end if named is None else named
    if token_id is None:
        raise CheckpointError(
            f"{folder}: no {name} token; neither tokenizer_config.json nor special_tokens_map.json "
            f"names one, and the vocabulary has no '{_END}'"
        )
    return token_id


def _rows(
    read: BpeFiles, spec: TokenizerSpec, vocab: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Text and type of every row. Ids past the last row are left out: they have no embedding."""
    tokens = [f"[PAD{row}]" for row in range(vocab)]
    types = [UNUSED] * vocab
    for text, token_id in read.ids.items():
        if token_id < vocab:
            tokens[token_id], types[token_id] = text, NORMAL
    control = {spec.bos_id, spec.eos_id, spec.unk_id, spec.pad_id}
    for token in read.added:
        if token.token_id < vocab:
            tokens[token.token_id] = token.text
            types[token.token_id] = _added_type(token, control)
    for row in control:
        if row is not None:
            types[row] = CONTROL
    return tuple(tokens), tuple(types)


def _added_type(token: AddedToken, control: set[int | None]) -> int:
    if token.special or token.token_id in control or looks_special(token.text):
        return CONTROL
    return USER_DEFINED


def _pre_tokenizer(folder: Path, read: BpeFiles) -> str:
    """llama.cpp's name for how a text is cut into words before the merges."""
    settings = folder / SETTINGS[0]
    config = Config(read_json_object(settings) if settings.is_file() else {}, str(settings))
    name = config.text("tokenizer_class", "GPT2Tokenizer").removesuffix("Fast")
    if name in _PRE:
        if config.flag("add_prefix_space", False):
            raise UnsupportedModelError(f"{settings}: add_prefix_space is true; needed: false")
        return _PRE[name]
    # tokenizer.json says itself how it cuts, and was held against GPT-2's words.
    if read.file == WHOLE:
        return _PRE["GPT2Tokenizer"]
    raise UnsupportedModelError(
        f"{settings}: tokenizer_class '{name}' is not known (known: {', '.join(_PRE)}); its "
        "llama.cpp name goes into export/tokenizers/bpe.py"
    )


TOKENIZER = Bpe()
