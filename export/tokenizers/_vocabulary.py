"""Tokens, scores and types of a vocabulary, with what the JSON files beside it add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mllm_export.config import read_json_object
from mllm_export.errors import CheckpointError
from mllm_export.records import record

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens, the same numbers in SentencePiece and in GGUF. Source: llama.h,
enum llama_token_type; sentencepiece_model.proto, SentencePiece.Type."""

_PADDING_SCORE = -10000.0
_ADDED_SCORE = -1000.0
"""Source: llama.cpp, conversion/base.py, TextModel._create_vocab_sentencepiece."""

_LOOK_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_FORMS = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
"""Source: llama.cpp, conversion/base.py, TextModel.does_token_look_special."""


@record
class Vocabulary:
    """One entry per row of the embedding."""

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    padding: int
    """Rows at the end that no token claims."""

    @staticmethod
    def of_pieces(pieces: Sequence[tuple[str, float, int]], rows: int) -> Vocabulary:
        """The pieces of a tokenizer.model, then padding up to `rows`."""
        padding = range(len(pieces), rows)
        entries = [
            # Upstream keeps user-defined pieces as normal ones; their scores make them merge.
            *(
                (text, score, NORMAL if kind == USER_DEFINED else kind)
                for text, score, kind in pieces
            ),
            *((f"[PAD{i}]", _PADDING_SCORE, UNUSED) for i in padding),
        ]
        tokens, scores, types = zip(*entries, strict=True)
        return Vocabulary(tokens=tokens, scores=scores, types=types, padding=len(padding))

    def ids(self) -> dict[str, int]:
        """The first id of every token."""
        found: dict[str, int] = {}
        for token_id, token in enumerate(self.tokens):
            found.setdefault(token, token_id)
        return found


def add_tokens(folder: Path, vocabulary: Vocabulary) -> Vocabulary:
    """Lay added_tokens.json and tokenizer_config.json's added_tokens_decoder over the pieces.

    Ids past the last row are left out, as the model has no embedding for them.

    Raises: CheckpointError for entries that are no tokens.
    """
    tokens, scores = list(vocabulary.tokens), list(vocabulary.scores)
    types = list(vocabulary.types)
    for token_id, token, special in _added(folder):
        if token_id < len(tokens):
            tokens[token_id], types[token_id] = token, _added_type(token, special)
            scores[token_id] = _ADDED_SCORE
            if types[token_id] == USER_DEFINED and special is not None:
                tokens[token_id] = token.replace("\u2581", " ")
    padding = next((i for i, kind in enumerate(reversed(types)) if kind != UNUSED), len(types))
    return Vocabulary(
        tokens=tuple(tokens),
        scores=tuple(scores),
        types=tuple(types),
        padding=min(padding, vocabulary.padding),
    )


def _added_type(token: str, special: bool | None) -> int:
    if special is None:
        return USER_DEFINED
    return CONTROL if special or looks_special(token) else USER_DEFINED


def looks_special(token: str) -> bool:
    """Whether upstream takes an added token for a control token by its looks."""
    return token in _LOOK_SPECIAL or any(
        token.startswith(start) and token.endswith(end) for start, end in _SPECIAL_FORMS
    )


def _added(folder: Path) -> list[tuple[int, str, bool | None]]:
    """Id, text and specialness; added_tokens.json does not say the last."""
    found: list[tuple[int, str, bool | None]] = []
    plain = folder / "added_tokens.json"
    if plain.is_file():
        for token, token_id in read_json_object(plain).items():
            if not isinstance(token_id, int) or token_id < 0:
                raise CheckpointError(f"{plain}: token '{token}' has id {token_id!r}")
            found.append((token_id, token, None))
    config = folder / "tokenizer_config.json"
    if config.is_file():
        found += _decoder_entries(config)
    return found


def _decoder_entries(config: Path) -> list[tuple[int, str, bool | None]]:
    entries = read_json_object(config).get("added_tokens_decoder", {})
    if not isinstance(entries, dict):
        raise CheckpointError(f"{config}: key 'added_tokens_decoder' is no object")
    found: list[tuple[int, str, bool | None]] = []
    for token_id, entry in entries.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not token_id.isdigit():
            raise CheckpointError(f"{config}: added_tokens_decoder: entry '{token_id}' is no token")
        found.append((int(token_id), content, bool(entry.get("special"))))
    return found
