"""Small byte-level BPE tokenizers in the published files, for random checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mllm_export.export.random_tokenizer import TEXT

WHOLE = "tokenizer.json"
_END = "<|endoftext|>"
NEOX = "GPTNeoXTokenizer"
_SPARE_ROWS = 9
"""Rows without a token: Phi-2 has 50295 tokens and 51200 rows."""


def write_bpe_tokenizer(folder: Path, rows: int, published: str) -> None:
    """As the class `published` of transformers is saved; CodeGenTokenizer where it is empty."""
    (_write_neox if published == NEOX else _write_codegen)(folder, rows)


def _write_codegen(folder: Path, rows: int) -> None:
    """Write vocab.json, merges.txt, added_tokens.json and the settings.

    As in CodeGen, ids are bytes, then merges, then `<|endoftext|>`, then runs of 31 to 2 blanks
    and of 9 to 2 tabs as added tokens. `rows` is at least 310.
    """
    runs = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
    ids, merges = _train(rows - len(runs) - 1 - _SPARE_ROWS)
    end = ids[_END] = len(ids)
    added = {text: end + place for place, text in enumerate(runs, 1)}
    decoder = {str(end): _added(_END, True)}
    decoder |= {str(token_id): _added(text, False) for text, token_id in added.items()}
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END)
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        **names,
        "clean_up_tokenization_spaces": True,
        "model_max_length": 2048,
        "tokenizer_class": "CodeGenTokenizer",
    }
    files = {
        "vocab.json": ids,
        "added_tokens.json": added,
        "tokenizer_config.json": settings,
        "special_tokens_map.json": names,
    }
    _write(folder, files)
    lines = ["#version: 0.2", *merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_neox(folder: Path, rows: int) -> None:
    """Write tokenizer.json and the settings.

    As in GPT-NeoX-20B, ids are `<|endoftext|>`, `<|padding|>`, bytes, merges, then runs of 24 to
    2 blanks as added tokens, and text is brought to NFC first. `rows` is at least 290.
    """
    runs = [" " * n for n in range(24, 1, -1)]
    first = (_END, "<|padding|>")
    trained, merges = _train(rows - len(runs) - len(first))
    ids = {text: place for place, text in enumerate((*first, *trained))}
    added = [(text, ids[text], True) for text in first]
    added += [(text, len(ids) + place, False) for place, text in enumerate(runs)]
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END)
    flags = dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix", "unk_token"))
    model = {"type": "BPE", "dropout": None, **flags, "fuse_unk": False}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": at, **_added(text, special)} for text, at, special in added],
        "normalizer": {"type": "NFC"},
        **dict.fromkeys(("pre_tokenizer", "post_processor", "decoder"), cut),
        "model": {**model, "vocab": ids, "merges": merges},
    }
    settings = {"add_prefix_space": False, **names, "tokenizer_class": NEOX}
    _write(folder, {WHOLE: whole, "tokenizer_config.json": settings})
    _write(folder, {"special_tokens_map.json": names})


def _write(folder: Path, files: Mapping[str, object]) -> None:
    for name, data in files.items():
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _added(text: str, special: bool) -> dict[str, object]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    return {"content": text, **flags, "normalized": not special, "special": special}


def _train(tokens: int) -> tuple[dict[str, int], list[str]]:
    """Bytes and merges, at most so many; the trainer breaks ties by id, so always the same."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return dict(sorted(model["vocab"].items(), key=lambda entry: entry[1])), merges
