"""Another checkpoint of the same sizes: other weights, and a tokenizer whose ids lie otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

_LETTERS = 259
"""Ids before this are <unk>, <s>, </s> and the bytes."""


def write_sibling(folder: Path, checkpoint: Path) -> Path:
    """As a further fine-tune would leave it: every weight moved by a tenth of its spread."""
    made = folder / "checkpoint"
    shutil.copytree(checkpoint, made)
    for tower in checkpoint.parent.glob("clip*"):
        shutil.copytree(tower, folder / tower.name)
    generator = torch.Generator().manual_seed(77)
    state = torch.load(made / "pytorch_model.bin", weights_only=True)
    moved = {name: _moved(values, generator) for name, values in state.items()}
    torch.save(moved, made / "pytorch_model.bin")
    _exchange_pieces(made / "tokenizer.model")
    return made


def _moved(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    wide = values.float()
    spread = 0.1 * wide.std() if wide.numel() > 1 else torch.tensor(0.0)
    noise = torch.randn(wide.shape, generator=generator)
    return (wide + spread * noise).to(values.dtype).contiguous()


def _exchange_pieces(path: Path) -> None:
    """Neighbours change places, scores and all: the same words, other ids."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    pieces = [(one.piece, one.score, one.type) for one in proto.pieces]
    for at in range(_LETTERS, len(pieces) - 1, 2):
        pieces[at], pieces[at + 1] = pieces[at + 1], pieces[at]
    for one, (piece, score, kind) in zip(proto.pieces, pieces, strict=True):
        one.piece, one.score, one.type = piece, score, kind
    path.write_bytes(proto.SerializeToString())
