"""Special tokens: which ids, and which of them are added to a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mllm_export.config import Config, read_json_object
from mllm_export.errors import CheckpointError
from mllm_export.records import record

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
"""Which token is which, in the order in which the files are asked."""


@record
class SpecialTokens:
    """None: the files beside tokenizer.model do not say."""

    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    pad_id: int | None
    add_bos: bool
    add_eos: bool
    add_prefix_space: bool | None


def read_special_tokens(
    folder: Path, config: Config | None, ids: Mapping[str, int], *, adds_bos: bool = True
) -> SpecialTokens:
    """From tokenizer_config.json, then special_tokens_map.json, then config.json.

    `adds_bos` is what stands for an absent add_bos_token.
    Source of the defaults: transformers, LlamaTokenizer (add_bos_token True, add_eos_token False),
    CodeGenTokenizer (both False).

    Raises: CheckpointError for a special token that is not in the vocabulary.
    """
    files = [folder / name for name in SETTINGS]
    tables = [(path, read_json_object(path)) for path in files if path.is_file()]

    def token_id(name: str) -> int | None:
        # A padding token past the model's rows is common and never used.
        for path, table in tables:
            text = _text(table.get(f"{name}_token"))
            if text is not None and text in ids:
                return ids[text]
            if text and name != "pad":
                raise CheckpointError(
                    f"{path}: {name}_token '{text}' is not in the vocabulary; "
                    "is the file another model's?"
                )
        return _config_id(config, f"{name}_token_id", len(ids))

    settings = Config(tables[0][1], str(files[0])) if files[0].is_file() else Config({}, "")
    has_prefix = "add_prefix_space" in settings
    return SpecialTokens(
        bos_id=token_id("bos"),
        eos_id=token_id("eos"),
        unk_id=token_id("unk"),
        pad_id=token_id("pad"),
        add_bos=settings.flag("add_bos_token", adds_bos),
        add_eos=settings.flag("add_eos_token", False),
        add_prefix_space=settings.flag("add_prefix_space") if has_prefix else None,
    )


def _text(entry: object) -> str | None:
    """A token's text; files write it bare or as an object with `content`."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _config_id(config: Config | None, key: str, rows: int) -> int | None:
    """An id of config.json; old files write -1 for none."""
    if config is None or key not in config:
        return None
    token_id = config.integer(key)
    return token_id if 0 <= token_id < rows else None
