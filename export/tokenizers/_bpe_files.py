"""A byte-level BPE vocabulary as transformers publishes it: in one file, or in several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from mllm_export.config import Config, read_json_object
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.records import record

WHOLE, VOCABULARY, MERGES, ADDED = "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"
SETTINGS = "tokenizer_config.json"


@record
class AddedToken:
    """A token that is found in a text before the text is cut into words."""

    token_id: int
    text: str
    special: bool


@record
class BpeFiles:
    """What the files say, whichever there are."""

    file: str
    """The one that holds the vocabulary."""
    ids: dict[str, int]
    """Token, in the alphabet of byte-level BPE, to id."""
    merges: tuple[str, ...]
    """`left right`, the first merged first."""
    added: tuple[AddedToken, ...]
    normalizer: Literal["", "NFC"] = ""


def read_bpe_files(folder: Path) -> BpeFiles:
    """tokenizer.json where it is there, as transformers prefers it; else vocab.json and merges.txt.

    Raises: CheckpointError for a missing or broken file, UnsupportedModelError for steps that
    llama.cpp's `gpt2` vocabulary does not have.
    """
    whole = folder / WHOLE
    if whole.is_file():
        return _read_whole(folder, Config(read_json_object(whole), str(whole)))
    return BpeFiles(
        file=VOCABULARY,
        ids=_ids(read_json_object(folder / VOCABULARY), folder / VOCABULARY),
        merges=_read_merges(folder / MERGES),
        added=_added(folder, ()),
    )


def _read_whole(folder: Path, data: Config) -> BpeFiles:
    model = data.section("model")
    _refuse_other_steps(data, model)
    vocab = model.section("vocab")
    merges = model.items("merges")
    return BpeFiles(
        file=WHOLE,
        ids=_ids(vocab.plain(), Path(vocab.file)),
        merges=tuple(_merge(merge, model.file) for merge in merges),
        added=_added(folder, _objects(data, "added_tokens")),
        normalizer="NFC" if "normalizer" in data else "",
    )


def _refuse_other_steps(data: Config, model: Config) -> None:
    if model.text("type", "BPE") != "BPE":
        raise UnsupportedModelError(f"{model.file}: type '{model.text('type')}', needed: BPE")
    if "normalizer" in data and data.section("normalizer").text("type") != "NFC":
        raise UnsupportedModelError(
            f"{data.file}: has a normalizer other than NFC, which llama.cpp's 'gpt2' vocabulary "
            "does not"
        )
    cut = data.section("pre_tokenizer")
    if cut.text("type") != "ByteLevel" or not cut.flag("use_regex", True):
        raise UnsupportedModelError(
            f"{cut.file}: type '{cut.text('type')}'; the exporter knows ByteLevel with GPT-2's "
            "words; another cut goes in with its llama.cpp name in export/tokenizers/bpe.py"
        )
    if cut.flag("add_prefix_space", False):
        raise UnsupportedModelError(f"{cut.file}: add_prefix_space is true; needed: false")
    for key in ("ignore_merges", "byte_fallback"):
        if model.flag(key, False):
            raise UnsupportedModelError(f"{model.file}: key '{key}' is true; needed: false")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.text(key, ""):
            raise UnsupportedModelError(f"{model.file}: key '{key}' is not empty; needed: none")


def _ids(entries: Mapping[str, object], file: Path) -> dict[str, int]:
    ids: dict[str, int] = {}
    for token, token_id in entries.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise CheckpointError(f"{file}: token '{token}' has id {token_id!r}")
        ids[token] = token_id
    if not ids:
        raise CheckpointError(f"{file}: the vocabulary is empty")
    return ids


def _merge(entry: object, where: str) -> str:
    # Old files write `left right`, later ones [left, right]. No part can hold a blank: the
    # alphabet of byte-level BPE has a letter of its own for it.
    if isinstance(entry, list) and all(isinstance(part, str) for part in entry):
        entry = " ".join(entry)
    if not isinstance(entry, str) or len(entry.split(" ")) != 2:
        raise CheckpointError(f"{where}: merge {entry!r} is no pair of tokens")
    return entry


def _read_merges(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; copy it from the published checkpoint") from None
    except (UnicodeDecodeError, OSError) as failure:
        raise CheckpointError(f"{file}: cannot be read ({failure})") from failure
    # Only the first line is a comment: '#' begins merges too.
    body = lines[1:] if lines[0].startswith("#version") else lines
    return tuple(_merge(line.rstrip("\r"), str(file)) for line in body if line.strip())


def _added(folder: Path, whole: Iterable[Mapping[str, object]]) -> tuple[AddedToken, ...]:
    """From all files that name some; what says whether one is special outranks what does not."""
    found: dict[int, AddedToken] = {}
    plain = folder / ADDED
    if plain.is_file():
        for text, token_id in _ids(read_json_object(plain), plain).items():
            found[token_id] = AddedToken(token_id=token_id, text=text, special=False)
    for entry in whole:
        _put(found, Config(entry, str(folder / WHOLE)), entry.get("id"))
    settings = folder / SETTINGS
    if settings.is_file():
        config = Config(read_json_object(settings), str(settings))
        if "added_tokens_decoder" in config:
            section = config.section("added_tokens_decoder")
            for key in section.plain():
                _put(found, section.section(key), int(key) if key.isdigit() else key)
    return tuple(found[token_id] for token_id in sorted(found))


def _put(found: dict[int, AddedToken], entry: Config, token_id: object) -> None:
    if not isinstance(token_id, int) or token_id < 0:
        raise CheckpointError(f"{entry.file}: an added token has id {token_id!r}")
    text = entry.text("content")
    for key in ("lstrip", "rstrip", "single_word"):
        if entry.flag(key, False):
            raise UnsupportedModelError(
                f"{entry.file}: added token {text!r} has '{key}'; llama.cpp takes blanks beside a "
                "token as they stand"
            )
    found[token_id] = AddedToken(token_id=token_id, text=text, special=entry.flag("special", False))


def _objects(data: Config, key: str) -> list[Mapping[str, object]]:
    entries = data.items(key) if key in data else ()
    if not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{data.file}: key '{key}' holds what is no token")
    return [entry for entry in entries if isinstance(entry, dict)]
