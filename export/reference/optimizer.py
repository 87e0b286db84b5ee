"""The optimizer, its schedule, and training state that survives an interruption."""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

WARMUP_STEPS = 150
FINAL_SHARE = 0.02  # of the learning rate, at the last step


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to a small rest."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    part = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * part)))


class Optimizer:
    """Muon for the hidden matrices, AdamW for the rest; both on one learning rate.

    Muon needs about half as many pictures as AdamW here, at a tenth more time a step.
    """

    def __init__(self, modules: Iterable[nn.Module], embeddings: Iterable[Tensor]) -> None:
        apart = {id(parameter) for parameter in embeddings}
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        matrices = [p for p in parameters if p.ndim == 2 and id(p) not in apart]
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self._parameters = parameters

    def step(self, loss: Tensor, rate: float) -> None:
        """Go one step down the loss."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)
            for group in part.param_groups:
                group["lr"] = rate
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for part in self._parts:
            part.step()

    def state(self) -> list[dict[str, object]]:
        """Everything to go on from."""
        return [part.state_dict() for part in self._parts]

    def restore(self, state: list[dict[str, object]]) -> None:
        """Go on from a state."""
        for part, values in zip(self._parts, state, strict=True):
            part.load_state_dict(values)


def save_state(path: Path, state: dict[str, object]) -> None:
    """Write a state file, whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)
