"""Checkpoint folders of an encoder alone with random weights, for tests and benches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mllm_export.export.random_checkpoint import random_tensor
from mllm_export.weights import Shape

_TEXTS = (
    "a photo of a red circle. a photo of a blue square. this is a photo of a green triangle.",
    "the quick brown fox jumps over the lazy dog; 0 1 2 3 4 5 6 7 8 9",
)


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


def write_clip_tokenizer(folder: Path, vocab: int = 600) -> None:
    """CLIP's vocab.json and merges.txt, of a few words; the end token comes last."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, end_of_word_suffix="</w>", initial_alphabet=sorted(alphabet),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(_TEXTS * 4, trainer)
    merges = json.loads(made.to_str())["model"]["merges"]
    pairs = [m if isinstance(m, list) else m.split(" ") for m in merges]
    signs = sorted(alphabet)
    tokens = [*signs, *(f"{s}</w>" for s in signs), *("".join(pair) for pair in pairs)]
    tokens = list(dict.fromkeys(tokens))
    words = [*tokens, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({token: at for at, token in enumerate(words)}), encoding="utf-8"
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_siglip_tokenizer(folder: Path, vocab: int = 300) -> None:
    """A unigram tokenizer.json with SigLIP's steps: lower case, no punctuation, </s> as id 1."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(_TEXTS * 4, trainer)
    made.save(str(folder / "tokenizer.json"))
