"""One planted fault: what is done, where it must be caught, and what cannot be planted or seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from fault_bench import Bench

from mllm_export.bundle import Bundle

Plant = Callable[[Bench, pytest.MonkeyPatch], Bundle]
"""A faulty bundle; what is patched stays so while it is checked."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    name: str
    stage: str
    """Where the fault is: preprocessing, prompt, tower, decoder file, decoding, bundle."""
    rungs: tuple[str, ...]
    """The rungs whose failing first names that stage."""
    plant: Plant
    recipe: str = "f16"
    models: tuple[str, ...] = ("tiny", "reference")
    quick: bool = False
    """Whether it is planted in every run of the tests, and not in the long sweep alone."""


@dataclass(frozen=True, kw_only=True)
class NotPlanted:
    """A fault of the list that has no place to stand, or that no check can see, and why."""

    name: str
    why: str


NOT_PLANTED = (
    NotPlanted(
        name="two image tiles swapped",
        why="no family here cuts a picture into tiles; two pictures of one prompt are swapped",
    ),
    NotPlanted(
        name="one expert tensor quantized that should not be",
        why="no family here has experts; a projection and a norm of the decoder are quantized",
    ),
    NotPlanted(
        name="EXIF turn ignored",
        why="the authors' code ignores it, so the fault to plant is that it is applied",
    ),
    NotPlanted(
        name="fused attention in float16",
        why="no fault by itself: 3.7e-5 nats on random weights, below what bfloat16 gives them",
    ),
)
