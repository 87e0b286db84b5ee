"""Checkpoint folders of an encoder alone with random weights, for tests and benches."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mllm_export.export.random_checkpoint import random_tensor
from mllm_export.weights import Shape

_TEXTS = (
    "a photo of a red circle. a photo of a blue square. this is a photo of a green triangle.",
    "the quick brown fox jumps over the lazy dog; 0 1 2 3 4 5 6 7 8 9",
)
_SPECIAL = ["<pad>", "</s>", "<unk>"]


def write_random_embedder(
    folder: Path,
    config: Mapping[str, object],
    shapes: Mapping[str, Shape],
    *,
    seed: int = 0,
    scalars: Mapping[str, tuple[float, Shape]] | None = None,
) -> Path:
    """config.json and model.safetensors; `scalars` are tensors of one given value."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {n: torch.from_numpy(random_tensor(n, s, seed)) for n, s in shapes.items()}
    for name, (value, shape) in (scalars or {}).items():
        tensors[name] = torch.full(shape, value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_clip_tokenizer(folder: Path) -> None:
    """CLIP's vocab.json and merges.txt, of a few words; the end token comes last.

    The same bytes every time: a trainer's order of equal pairs depends on the run.
    """
    from tokenizers import pre_tokenizers

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = _pairs()
    tokens = [*signs, *(f"{s}</w>" for s in signs), *("".join(pair) for pair in pairs)]
    words = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({token: at for at, token in enumerate(words)}), encoding="utf-8"
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _words() -> list[str]:
    """Of the texts, as often as they stand there."""
    return [word for text in _TEXTS for word in re.findall(r"\w+", text)]


def _pairs() -> list[tuple[str, str]]:
    """Merges that make every word of the texts, letter by letter from its beginning."""
    found: dict[tuple[str, str], None] = {}
    for word in sorted(set(_words())):
        letters = (*word[:-1], f"{word[-1]}</w>")
        found.update({(word[:at], letters[at]): None for at in range(1, len(word))})
    return list(found)


def write_siglip_tokenizer(folder: Path) -> None:
    """A unigram tokenizer.json with SigLIP's steps: lower case, no punctuation, </s> as id 1.

    The same bytes every time: its words are counted here, for the trainer's depend on the run.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    made = Tokenizer(models.Unigram(_unigrams(), unk_id=_SPECIAL.index("<unk>")))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(_SPECIAL)
    made.save(str(folder / "tokenizer.json"))


def _unigrams() -> list[tuple[str, float]]:
    """Pieces and log probabilities: special tokens, whole words, then their letters."""
    words = Counter(f"\u2581{word}" for word in _words())
    letters = Counter("".join(words))
    total = words.total() + letters.total()
    counted = (*sorted(words.items()), *sorted(letters.items()))
    return [(token, 0.0) for token in _SPECIAL] + [
        (piece, math.log(count / total)) for piece, count in counted
    ]
