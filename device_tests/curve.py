"""Size against loss of one model: measured once, then read from a cache."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import mllm_export
from mllm_export.caches import cache_folder
from mllm_export.checkpoint import Asked, Checkpoint
from mllm_export.device_tests.samples import calibration_sha256
from mllm_export.errors import CheckError
from mllm_export.progress import Progress
from mllm_export.quantize.budget import Assignment, Curve, Point, frontier, spend
from mllm_export.records import as_plain, from_json, record, to_json

if TYPE_CHECKING:
    from mllm_export.device_tests.sensitivity import Sensitivity
    from mllm_export.export.family import Reading

POINTS = 20
"""Budgets that are tried, evenly spread from the smallest size to the least loss."""


@record
class Budget:
    """What may be spent, and what is spent whatever is chosen."""

    size_bytes: int
    fixed_bytes: int
    context_tokens: int


def curve_stage(
    source: tuple[Path, Asked],
    reading: Reading,
    preset: str,
    calibration: Path | None,
    budget: Budget,
    progress: Progress,
) -> Curve:
    """Measure, or read what was measured from the same files before.

    The solver's assignment for the budget is one of the points.
    Raises: CheckError for a bad calibration set; RecipeError for a budget that cannot be met.
    """
    import torch

    torch.set_num_threads(1)
    checkpoint = Checkpoint(*source)
    path = _cache(checkpoint, reading, preset, calibration, budget.context_tokens)
    with _Measuring(checkpoint, reading, preset, calibration, progress) as measuring:
        if path.is_file():
            curve = from_json(Curve, path.read_text(encoding="utf-8"), path, CheckError)
        else:
            curve = measuring.curve(budget.context_tokens)
            _store(path, curve)
        wanted = spend(curve.options, budget.fixed_bytes, budget.size_bytes)
        if all(wanted.options != one.assignment.options for one in curve.points):
            curve = replace(curve, points=(*curve.points, measuring.point(wanted)))
            _store(path, curve)
    return curve


class _Measuring:
    """A `Sensitivity` that is made when something has to be measured."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        reading: Reading,
        preset: str,
        calibration: Path | None,
        progress: Progress,
    ) -> None:
        from mllm_export.device_tests.sensitivity import Sensitivity

        self._make = partial(Sensitivity, checkpoint, reading, preset, calibration, progress)
        self._made: Sensitivity | None = None

    def __enter__(self) -> _Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        if self._made is not None:
            self._made.close()

    def curve(self, context_tokens: int) -> Curve:
        """Every option, and the frontier's assignments as a whole."""
        options = self._sensitivity().options(context_tokens)
        return Curve(
            options=options,
            points=tuple(self.point(one) for one in frontier(options, 0, POINTS)),
        )

    def point(self, assignment: Assignment) -> Point:
        """What it really loses; sizes are counted without what is fixed."""
        bare = replace(assignment, fixed_bytes=0)
        return Point(assignment=bare, measured_loss=self._sensitivity().loss(bare))

    def _sensitivity(self) -> Sensitivity:
        if self._made is None:
            self._made = self._make()
        return self._made


def _store(path: Path, curve: Curve) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(to_json(curve), encoding="utf-8")
    partial.replace(path)


def _cache(
    checkpoint: Checkpoint,
    reading: Reading,
    preset: str,
    calibration: Path | None,
    context_tokens: int,
) -> Path:
    from mllm_export.device_tests.sensitivity import SEQUENCES
    from mllm_export.export.budget_options import budget_options

    inputs = {
        "sources": [
            as_plain(one) for one in checkpoint.sources(reading.uses_tower_folder, reading.folders)
        ],
        "calibration": calibration_sha256(calibration),
        "preset": preset,
        "measured": [as_plain(one) for one in budget_options(reading.spec, context_tokens)],
        "with": [SEQUENCES, POINTS],
        "version": mllm_export.__version__,
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / f"curve-{key}.json"
