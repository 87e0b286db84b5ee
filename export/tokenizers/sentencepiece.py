"""SentencePiece BPE tokenizers of the LLaMA kind, as llama.cpp's `llama` vocabulary.

Source: llama.cpp, conversion/base.py, TextModel._create_vocab_sentencepiece, and
gguf-py/gguf/vocab.py, SpecialVocab.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.parts import GgufField
from mllm_export.export.random_tokenizer import write_tokenizer
from mllm_export.export.tokenizers._fields import field, id_fields
from mllm_export.export.tokenizers._special import (
    SETTINGS,
    SpecialTokens,
    read_special_tokens,
)
from mllm_export.export.tokenizers._vocabulary import Vocabulary, add_tokens
from mllm_export.spec import TokenizerSpec

_FILE = "tokenizer.model"
_BPE = 2
"""Source: sentencepiece_model.proto, TrainerSpec.ModelType."""


class SentencePiece:
    """`tokenizer.model` and the JSON files beside it."""

    files = (_FILE, "added_tokens.json", *SETTINGS)

    def read_spec(self, folder: Path, config: Config) -> TokenizerSpec:
        """Files and special ids of the checkpoint's tokenizer.

        The tokenizer's own files outrank config.json, whose ids are wrong in some checkpoints.

        Raises: CheckpointError for a broken file or more pieces than the model has rows,
        UnsupportedModelError for a kind of tokenizer that llama.cpp would not reproduce.
        """
        proto = _read_model(folder / _FILE)
        rows = config.positive("vocab_size")
        if len(proto.pieces) > rows:
            raise CheckpointError(
                f"{folder / _FILE} has {len(proto.pieces)} pieces, config.json's vocab_size is "
                f"{rows}; is the tokenizer another model's?"
            )
        vocabulary = _vocabulary(folder, proto, rows)
        special = read_special_tokens(folder, config, vocabulary.ids())
        trained = proto.trainer_spec
        return TokenizerSpec(
            kind="sentencepiece",
            file=_FILE,
            vocab=len(vocabulary.tokens) - vocabulary.padding,
            bos_id=_required(folder, "bos", special.bos_id, trained.bos_id),
            eos_id=_required(folder, "eos", special.eos_id, trained.eos_id),
            unk_id=_required(folder, "unk", special.unk_id, trained.unk_id),
            pad_id=special.pad_id,
            add_bos=special.add_bos,
        )

    def write_random(self, folder: Path, rows: int, published: str = "") -> None:
        """LLaMA's settings, a token for every row."""
        del published
        write_tokenizer(folder, rows)

    def metadata(self, folder: Path, spec: TokenizerSpec, vocab: int) -> tuple[GgufField, ...]:
        """tokenizer.ggml.* keys; rows past the tokenizer's own are padding.

        The chat template is not among them: the family knows the one the model was trained on.
        """
        proto = _read_model(folder / spec.file)
        vocabulary = _vocabulary(folder, proto, vocab)
        special = read_special_tokens(folder, None, vocabulary.ids())
        prefix = proto.normalizer_spec.add_dummy_prefix
        return (
            field("model", "llama", "STRING"),
            field("pre", "default", "STRING"),
            field("tokens", vocabulary.tokens, "ARRAY"),
            field("scores", vocabulary.scores, "ARRAY"),
            field("token_type", vocabulary.types, "ARRAY"),
            *id_fields(spec),
            field("add_bos_token", spec.add_bos, "BOOL"),
            field("add_eos_token", special.add_eos, "BOOL"),
            *_prefix_fields(special, prefix),
        )


def _prefix_fields(special: SpecialTokens, trained: bool) -> list[GgufField]:
    """The blank before the first word; llama.cpp adds it where the key is not there."""
    asked = trained if special.add_prefix_space is None else special.add_prefix_space
    if special.add_prefix_space is None and asked:
        return []
    return [field("add_space_prefix", asked, "BOOL")]


def _required(folder: Path, name: str, named: int | None, trained: int) -> int:
    if named is not None:
        return named
    if trained < 0:
        raise CheckpointError(
            f"{folder}: no {name} token; neither tokenizer_config.json, special_tokens_map.json, "
            f"config.json nor {_FILE} names one"
        )
    return trained


def _vocabulary(folder: Path, proto: Any, rows: int) -> Vocabulary:
    pieces = [(piece.piece, piece.score, int(piece.type)) for piece in proto.pieces]
    return add_tokens(folder, Vocabulary.of_pieces(pieces, rows))


def _read_model(path: Path) -> Any:
    """The parsed tokenizer.model; protobuf reads data and runs nothing."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy it from the published checkpoint") from None
    except (DecodeError, OSError) as failure:
        raise CheckpointError(f"{path}: not a SentencePiece model ({failure})") from failure
    if not (proto.pieces and proto.HasField("trainer_spec")):
        raise CheckpointError(f"{path}: not a whole SentencePiece model; copy it again")
    _refuse_what_llama_cpp_lacks(path, proto)
    return proto


def _refuse_what_llama_cpp_lacks(path: Path, proto: Any) -> None:
    """llama.cpp's `llama` vocabulary merges by score and normalises nothing but blanks."""
    if proto.trainer_spec.model_type != _BPE:
        raise UnsupportedModelError(
            f"{path}: model type {proto.trainer_spec.model_type} is not BPE (2); llama.cpp would "
            "cut other pieces than the original"
        )
    if proto.normalizer_spec.precompiled_charsmap:
        raise UnsupportedModelError(
            f"{path}: normalises text by '{proto.normalizer_spec.name}', which llama.cpp's 'llama' "
            "vocabulary does not"
        )
    if proto.normalizer_spec.remove_extra_whitespaces:
        raise UnsupportedModelError(
            f"{path}: drops extra blanks (remove_extra_whitespaces), which llama.cpp does not"
        )


TOKENIZER = SentencePiece()
