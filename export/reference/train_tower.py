"""Stage 1: the vision tower learns what every patch belongs to.

A label on each patch of a picture teaches the tower far faster than one answer per picture.
The heads that read the labels off are thrown away; the projector learns to read the features.
"""

import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from mllm_export.export.reference.drawing import IGNORE, KINDS
from mllm_export.export.reference.model import normalized, round_to_bfloat16, vision_config
from mllm_export.export.reference.optimizer import Optimizer, learning_rate, save_state
from mllm_export.export.reference.pictures import PicturePool
from mllm_export.export.reference.scenes import COLORS, PLACES
from mllm_export.export.reference.spec import ReferenceSpec

logger = logging.getLogger(__name__)
HEADS = {"kind": 1 + len(KINDS), "color": 1 + len(COLORS), "place": 1 + len(PLACES), "centre": 2}
SAVE_EVERY_STEPS = 250
REPORT_EVERY_STEPS = 50


def _cosine_filters(patch_px: int) -> Tensor:
    """Low frequencies of brightness and of two color differences. Shapes: f32[48, 3, px, px]."""
    at = torch.arange(patch_px) + 0.5
    waves = torch.cos(torch.pi / patch_px * at[None] * torch.arange(patch_px)[:, None])
    mixes = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    filters = [
        mix[:, None, None] * waves[u][:, None] * waves[v][None] * (1 + u + v)
        for mix, highest in zip(mixes, (6, 3, 3), strict=True)
        for u in range(highest + 1)
        for v in range(highest + 1 - u)
    ]
    return torch.stack(filters) / patch_px**2


def new_tower(spec: ReferenceSpec) -> CLIPVisionModel:
    """A tower that starts from cosine filters and sine positions, which halves the training."""
    torch.manual_seed(spec.seed)
    tower = CLIPVisionModel(vision_config(spec.vision))
    embeddings = tower.vision_model.embeddings
    filters = _cosine_filters(spec.vision.patch_px)
    quarter = spec.vision.width // 4
    grid = spec.vision.grid
    speeds = torch.pi / grid * torch.exp2(torch.linspace(-1, 3.5, quarter))
    angles = torch.arange(grid)[:, None] * speeds
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    with torch.no_grad():
        embeddings.patch_embedding.weight[: len(filters)] = filters
        embeddings.position_embedding.weight[1:] = torch.cat([rows, columns], 2).flatten(0, 1) * 0.3
    return tower


def patch_features(
    tower: CLIPVisionModel, pixels: Tensor, select_layer: int, keep: Tensor
) -> Tensor:
    """The selected layer's rows for some of the patches, computed from those patches alone.

    Shapes: f32[B, 3, px, px], i64[B, K] -> [B, K, width].
    """
    model = tower.vision_model
    states: Tensor = model.embeddings(pixels)
    rows = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], dim=1)
    states = states.gather(1, rows[..., None].expand(-1, -1, states.shape[-1]))
    states = model.pre_layrnorm(states)
    for layer in model.encoder.layers[: len(model.encoder.layers) + 1 + select_layer]:
        states = layer(states, None, None)[0]
    return states[:, 1:]


def _chosen_patches(labels: Tensor, count: int) -> Tensor:
    """All patches of things first, then random background. Shapes: i64[B, 4, N] -> i64[B, K]."""
    score = torch.rand(labels.shape[0], labels.shape[2]) + 2.0 * (labels[:, 0] != 0)
    return score.topk(count, dim=1).indices


def _losses(heads: nn.ModuleDict, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    found = {}
    for at, name in enumerate(HEADS):
        scores = heads[name](features.float()).flatten(0, 1)
        wanted = labels[:, at].flatten()
        found[name] = nn.functional.cross_entropy(scores, wanted, ignore_index=IGNORE)
    return found


def _shares_right(heads: nn.ModuleDict, features: Tensor, labels: Tensor) -> dict[str, float]:
    """How often each head is right, on the patches of things."""
    shares = {}
    for at, name in enumerate(HEADS):
        wanted = labels[:, at]
        on = (wanted == 1) if name == "centre" else (wanted > 0)
        right = heads[name](features.float()).argmax(-1) == wanted
        shares[name] = float(right[on].float().mean())
        if name == "kind":
            digits = wanted > len(KINDS) - 10
            shares["digit"] = float(right[digits].float().mean()) if digits.any() else 1.0
    return shares


def _scale_unrun(tower: CLIPVisionModel, spec: ReferenceSpec) -> None:
    """Scale the matrices that no answer depends on.

    As they were initialised they hardly move a row, so that a wrong choice of layer would pass.
    """
    layers = tower.vision_model.encoder.layers
    with torch.no_grad():
        for layer in layers[len(layers) + 1 + spec.vision.select_layer :]:
            for parameter in layer.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(spec.schedule.unrun_scale)


def train_tower(spec: ReferenceSpec, pool: PicturePool, work: Path) -> CLIPVisionModel:
    """Train the tower, or go on with one that was interrupted; weights come back as bf16 values."""
    plan = spec.schedule
    tower = new_tower(spec)
    heads = nn.ModuleDict({name: nn.Linear(spec.vision.width, n) for name, n in HEADS.items()})
    embeddings = tower.vision_model.embeddings
    apart = [embeddings.position_embedding.weight, *heads.parameters()]
    optimizer = Optimizer([tower, heads], apart)
    path, first = work / "tower.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        optimizer.restore(state["optimizer"])
        first = state["step"]
    began = time.monotonic()
    for step in range(first, plan.tower_steps):
        rng = np.random.default_rng((spec.seed, 11, step))
        torch.manual_seed(int(rng.integers(2**31)))
        chosen = np.sort(rng.choice(len(pool), plan.tower_batch, replace=False))
        pixels = normalized(torch.from_numpy(pool.pixels[chosen]))
        pixels.mul_(1 + 0.06 * torch.randn(len(chosen), 3, 1, 1))
        labels = torch.from_numpy(pool.labels[chosen]).long().flatten(2)
        is_full = step >= plan.tower_steps * (1 - plan.tower_full_share)
        keep = _chosen_patches(labels, spec.vision.grid**2 if is_full else plan.tower_patches)
        labels = labels.gather(2, keep[:, None].expand(-1, len(HEADS), -1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = patch_features(tower, pixels, spec.vision.select_layer, keep)
        losses = _losses(heads, features, labels)
        optimizer.step(
            torch.stack(list(losses.values())).sum(),
            learning_rate(step, plan.tower_steps, plan.tower_rate),
        )
        if (step + 1) % REPORT_EVERY_STEPS == 0:
            with torch.no_grad():
                shares = _shares_right(heads, features, labels)
            told = " ".join(f"{name} {share:.3f}" for name, share in shares.items())
            per_step = (time.monotonic() - began) / (step + 1 - first)
            logger.info("tower step %d: right on %s (%.3f s a step)", step + 1, told, per_step)
        if (step + 1) % SAVE_EVERY_STEPS == 0 or step + 1 == plan.tower_steps:
            state = {
                "tower": tower.state_dict(), "heads": heads.state_dict(),
                "optimizer": optimizer.state(), "step": step + 1,
            }  # fmt: skip
            save_state(path, state)
    _scale_unrun(tower, spec)
    round_to_bfloat16(tower)
    return tower
