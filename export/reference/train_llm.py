"""Stage 2: projector and language model learn to answer from the frozen tower's features.

All questions on a picture share one sequence: each sees the common prefix (system text and image)
and itself, at the positions that it would have alone. So an image's tokens are computed once for
a dozen answers, and every answer's loss equals that of a conversation of its own.
"""

import logging
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from mllm_export.export.reference.model import ReferenceModel, normalized, round_to_bfloat16
from mllm_export.export.reference.optimizer import Optimizer, learning_rate, save_state
from mllm_export.export.reference.pictures import PicturePool
from mllm_export.export.reference.questions import Question, pick_questions
from mllm_export.export.reference.spec import ReferenceSpec
from mllm_export.export.reference.tokenizer import Prompts
from mllm_export.export.reference.train_tower import patch_features

logger = logging.getLogger(__name__)
FEATURE_CHUNK = 32
SAVE_EVERY_STEPS = 250
REPORT_EVERY_STEPS = 50
PADDING, PREFIX = -1, 0  # block numbers; questions count from 1
EMBEDDING_SPREAD = 0.1


def store_features(
    path: Path, tower: CLIPVisionModel, pool: PicturePool, spec: ReferenceSpec
) -> None:
    """Write the tower's features of the first pictures, unless the file is there.

    Shapes: i16[N, 576, width], bfloat16 bits.
    """
    if path.exists():
        return
    part = path.with_suffix(".part.npy")
    rows = (tower.config.image_size // tower.config.patch_size) ** 2
    count = spec.schedule.llm_pictures
    shape = (count, rows, tower.config.hidden_size)
    stored = np.lib.format.open_memmap(part, mode="w+", dtype=np.int16, shape=shape)
    keep = torch.arange(rows)
    for at in range(0, count, FEATURE_CHUNK):
        stop = min(at + FEATURE_CHUNK, count)
        pixels = normalized(torch.from_numpy(pool.pixels[at:stop].copy()))
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            kept = keep.expand(len(pixels), -1)
            made = patch_features(tower, pixels, spec.vision.select_layer, kept)
        stored[at:stop] = made.bfloat16().view(torch.int16).numpy()
    stored.flush()
    part.rename(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The text after the image, questions side by side. Shapes: i64[B, T] each."""

    ids: Tensor
    blocks: Tensor  # which question a token belongs to, PADDING beyond the last
    positions: Tensor  # from 0 at each question's first token
    labels: Tensor  # the next token where an answer is to be learnt, else -100


def pack(prompts: Prompts, pictures: list[list[Question]]) -> Packed:
    """Lay the questions of each picture side by side."""
    rows = []
    for questions in pictures:
        row: list[tuple[int, int, int, int]] = []
        for number, question in enumerate(questions, start=1):
            ids, start = prompts.conversation(question.text, question.answer)
            wanted = [*ids[1:], -100]
            row += [
                (token, number, at, wanted[at] if at >= start - 1 else -100)
                for at, token in enumerate(ids)
            ]
        rows.append(row)
    longest = max(len(row) for row in rows)
    filled = [row + [(0, PADDING, 0, -100)] * (longest - len(row)) for row in rows]
    columns = torch.tensor(filled).unbind(-1)
    return Packed(ids=columns[0], blocks=columns[1], positions=columns[2], labels=columns[3])


def block_mask(blocks: Tensor) -> Tensor:
    """Who sees whom: the past, of the prefix or of one's own question.

    Shapes: i64[B, T] -> bool[B, 1, T, T].
    """
    same = blocks[:, :, None] == blocks[:, None, :]
    past = torch.ones(blocks.shape[1], blocks.shape[1], dtype=torch.bool).tril()
    return ((same | (blocks[:, None, :] == PREFIX)) & past)[:, None]


def answer_scores(
    model: ReferenceModel, features: Tensor, before: Tensor, packed: Packed
) -> Tensor:
    """Scores of the next token wherever a label stands. Shapes: f32[labels, V]."""
    embed = model.decoder.model.embed_tokens
    image = model.projector(features)
    batch, prefix = len(image), len(before) + image.shape[1]
    rows = [embed(before).expand(batch, -1, -1), image, embed(packed.ids)]
    blocks = torch.cat([torch.full((batch, prefix), PREFIX), packed.blocks], 1)
    positions = torch.cat([torch.arange(prefix).expand(batch, -1), packed.positions + prefix], 1)
    states = model.decoder.model(
        inputs_embeds=torch.cat(rows, 1),
        attention_mask=block_mask(blocks),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    scores: Tensor = model.decoder.lm_head(states[:, prefix:][packed.labels >= 0])
    return scores.float()


def _shares_right(right: Tensor, packed: Packed, pictures: list[list[Question]]) -> str:
    """How many answers of each kind were right in every token."""
    wrong = torch.zeros_like(packed.labels)
    wrong[packed.labels >= 0] = (~right).long()
    asked, failed = Counter[str](), Counter[str]()
    for row, questions in enumerate(pictures):
        for number, question in enumerate(questions, start=1):
            asked[question.kind] += 1
            failed[question.kind] += bool(wrong[row][packed.blocks[row] == number].any())
    return " ".join(f"{kind} {1 - failed[kind] / asked[kind]:.3f}" for kind in sorted(asked))


def _new_model(spec: ReferenceSpec, tower: CLIPVisionModel) -> ReferenceModel:
    torch.manual_seed(spec.seed + 1)
    model = ReferenceModel(spec)
    model.tower.load_state_dict(tower.state_dict())
    model.tower.requires_grad_(False)
    nn.init.normal_(model.decoder.model.embed_tokens.weight, std=EMBEDDING_SPREAD)
    return model


def train_llm(
    spec: ReferenceSpec, tower: CLIPVisionModel, prompts: Prompts, pool: PicturePool, work: Path
) -> ReferenceModel:
    """Train projector and decoder, or go on with an interrupted run; returns bf16 values."""
    plan = spec.schedule
    model = _new_model(spec, tower)
    apart = [model.decoder.model.embed_tokens.weight, model.decoder.lm_head.weight]
    learning = nn.ModuleDict({"projector": model.projector, "decoder": model.decoder})
    optimizer = Optimizer([learning], apart)
    path, first = work / "llm.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        learning.load_state_dict(state["model"])
        optimizer.restore(state["optimizer"])
        first = state["step"]
    stored = np.load(work / "features.npy", mmap_mode="r")
    before = torch.tensor(prompts.before)
    began = time.monotonic()
    for step in range(first, plan.llm_steps):
        rng = np.random.default_rng((spec.seed, 12, step))
        chosen = np.sort(rng.choice(len(stored), plan.llm_batch, replace=False))
        pictures = [
            pick_questions(pool.scene(int(index)), rng, plan.llm_questions) for index in chosen
        ]
        packed = pack(prompts, pictures)
        features = torch.from_numpy(stored[chosen]).view(torch.bfloat16).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = answer_scores(model, features, before, packed)
        wanted = packed.labels[packed.labels >= 0]
        loss = nn.functional.cross_entropy(scores, wanted)
        optimizer.step(loss, learning_rate(step, plan.llm_steps, plan.llm_rate))
        if (step + 1) % REPORT_EVERY_STEPS == 0:
            told = _shares_right(scores.argmax(-1) == wanted, packed, pictures)
            per_step = (time.monotonic() - began) / (step + 1 - first)
            logger.info(
                "llm step %d: loss %.4f right %s (%.3f s a step)",
                step + 1,
                loss.detach(),
                told,
                per_step,
            )
        if (step + 1) % SAVE_EVERY_STEPS == 0 or step + 1 == plan.llm_steps:
            state = {
                "model": learning.state_dict(), "optimizer": optimizer.state(), "step": step + 1,
            }  # fmt: skip
            save_state(path, state)
    round_to_bfloat16(learning)
    return model
