"""Noise floors as they were measured: the original against itself, by variant."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Literal

from mllm_export.catalog import unknown
from mllm_export.errors import CheckError
from mllm_export.records import from_plain, record
from mllm_export.toml import read_toml

_PACKAGE = "mllm_export.device_tests.floors"

FloorMeasure = Literal[
    "worst_token_cosine_lost", "relative_error", "mean_kl", "p99_kl", "top1_lost"
]

TRAINED = ("reference", "reference-phi")
RANDOM = "random"
"""Records by name: the shipped checkpoints, and a tiny twin without training."""


@record
class Floor:
    """What a variant of the original differs by from the original in float32."""

    variant: str
    """What it computes in, with how many threads, or what resized its pictures."""
    worst_token_cosine_lost: float
    relative_error: float
    """Of image embeddings, over their norm."""
    mean_kl: float
    p99_kl: float
    top1_lost: float

    def of(self, measure: FloorMeasure) -> float:
        """One of its figures."""
        return {
            "worst_token_cosine_lost": self.worst_token_cosine_lost,
            "relative_error": self.relative_error,
            "mean_kl": self.mean_kl,
            "p99_kl": self.p99_kl,
            "top1_lost": self.top1_lost,
        }[measure]


@record
class FloorRecord:
    """One file of device_tests/floors."""

    checkpoint: str
    questions: int
    rows: int
    """Of logits."""
    made_with: str
    floors: tuple[Floor, ...]

    def floor(self, variant: str) -> Floor:
        """Raises: CheckError for a variant that was not measured."""
        for one in self.floors:
            if one.variant == variant:
                return one
        known = [one.variant for one in self.floors]
        raise CheckError(f"floors of '{self.checkpoint}': {unknown('variant', variant, known)}")


def load_floors(name: str) -> FloorRecord:
    """Read a record.

    Raises: CheckError for a file that is not as `noise_floor --write` leaves it.
    """
    table = read_toml(files(_PACKAGE) / f"{name}.toml", CheckError)
    return from_plain(FloorRecord, table, f"{name}.toml", CheckError)


def highest(names: Iterable[str], variant: str, measure: FloorMeasure) -> float:
    """The largest floor of several models."""
    return max(load_floors(name).floor(variant).of(measure) for name in names)
