"""The tokenizer of a text tower as one tokenizer.json, which the `tokenizers` library reads."""

from __future__ import annotations

import json
from pathlib import Path

from mllm_export.config import Config, read_json_object
from mllm_export.errors import CheckpointError

_FILE = "tokenizer.json"


def special_id(folder: Path, token: str) -> int:
    """The id of a special token.

    Configs cannot be asked: openai/clip-vit-* say bos 0 and eos 2, where the tokenizer has 49406
    and 49407.
    Raises: CheckpointError when the folder holds no tokenizer, or the tokenizer no such token.
    """
    found = _vocabulary(folder).get(token)
    if found is None:
        raise CheckpointError(f"{folder}: the tokenizer has no token '{token}'")
    return found


def write_tokenizer_json(folder: Path, out: Path) -> None:
    """Copy tokenizer.json, or make it from CLIP's vocab.json and merges.txt."""
    if (folder / _FILE).is_file():
        out.write_bytes((folder / _FILE).read_bytes())
        return
    from transformers import CLIPTokenizerFast

    made = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    made.backend_tokenizer.save(str(out))


def _vocabulary(folder: Path) -> dict[str, int]:
    file = folder / _FILE
    if file.is_file():
        data = Config(read_json_object(file), str(file))
        return {**_listed(file), **_model_vocabulary(data)}
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        plain = read_json_object(folder / "vocab.json")
        return {token: number for token, number in plain.items() if isinstance(number, int)}
    raise CheckpointError(
        f"{folder} holds no tokenizer for its text tower; put tokenizer.json there, or CLIP's "
        "vocab.json and merges.txt (ViTamin reads text with CLIP's)"
    )


def _listed(file: Path) -> dict[str, int]:
    entries = json.loads(file.read_bytes()).get("added_tokens") or []
    return {entry["content"]: entry["id"] for entry in entries}


def _model_vocabulary(data: Config) -> dict[str, int]:
    words = json.loads(Path(data.file).read_bytes())["model"]["vocab"]
    if isinstance(words, dict):
        return {str(token): int(number) for token, number in words.items()}
    # A unigram model lists pairs of piece and score.
    return {str(pair[0]): number for number, pair in enumerate(words)}
