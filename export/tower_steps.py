"""What each step on the way from a float tower to a quantized one moved, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.errors import BuildError
from mllm_export.export.tower_ranges import Floats, run_piece
from mllm_export.records import from_json, record, to_json

if TYPE_CHECKING:
    from onnx import ModelProto

FUSED, SMOOTHED, QUANTIZED = "fused", "smoothed", "quantized"

EXACT_STEPS: Mapping[str, float] = {FUSED: 1e-4, SMOOTHED: 1e-4}
"""Steps after which a piece computes the same but for the order of sums, and the relative error
that is let pass: measured on CLIP ViT-L/14-336 4e-7; a wrong scale or activation gives over 1e-3.
"""


@record
class Step:
    """One step over the whole tower."""

    name: str
    relative_error: float
    """Norm of the difference over the norm, of the piece that moved most; 0 for none."""


@record
class TowerSteps:
    """In the order in which they are taken."""

    rewrites: tuple[tuple[str, int], ...]
    """Each pass of export/passes and what it exchanged."""
    steps: tuple[Step, ...]
    inputs: int
    """How many pictures each step was measured on."""


class StepMeter:
    """Runs a piece after every step on one picture, and keeps what moved most."""

    def __init__(self) -> None:
        """Nothing has been measured."""
        self._largest: dict[str, float] = {}
        self._rewrites: dict[str, int] = {}
        self._before: list[Floats] | None = None
        self._given: Mapping[str, Floats] = {}

    def begin(self, piece: ModelProto, given: Mapping[str, Floats]) -> None:
        """A piece as it is published, and the values that enter it."""
        self._given = given
        self._before = run_piece(piece, given)

    def count(self, rewrites: Mapping[str, int]) -> None:
        """What the passes did to this piece."""
        for name, number in rewrites.items():
            self._rewrites[name] = self._rewrites.get(name, 0) + number

    def after(self, step: str, piece: ModelProto) -> list[Floats]:
        """The piece behind a step, held against what it gave before; returns what it gives.

        Raises: BuildError when a step that changes no value changed one.
        """
        assert self._before is not None, "begin() comes first"
        made = run_piece(piece, self._given)
        errors = list(map(relative_error, self._before, made))
        at = int(np.argmax(errors))
        error = errors[at]
        limit = EXACT_STEPS.get(step)
        if limit is not None:
            if not error <= limit:
                raise BuildError(
                    f"the tower's graph computes something else once it is {step}: relative error "
                    f"{error:.2g} at '{piece.graph.output[at].name}', at most {limit:g} is rounding"
                )
            self._before = made
        self._largest[step] = max(self._largest.get(step, 0.0), error)
        return made

    def result(self) -> TowerSteps:
        """Of all pieces."""
        return TowerSteps(
            rewrites=tuple(self._rewrites.items()),
            steps=tuple(Step(name=n, relative_error=e) for n, e in self._largest.items()),
            inputs=1,
        )


def relative_error(expected: Floats, made: Floats) -> float:
    """Norm of the difference over the norm; infinite for values that are no numbers."""
    if not np.isfinite(made).all():
        return float("inf")
    norm = float(np.linalg.norm(expected.astype(np.float64))) or 1.0
    return float(np.linalg.norm((made - expected).astype(np.float64))) / norm


def steps_path(float_tower: Path) -> Path:
    """Where a build keeps them for its checks: beside the float tower, which goes in the end."""
    return float_tower.with_suffix(".steps.json")


def write_steps(float_tower: Path, steps: TowerSteps) -> None:
    """See `steps_path`."""
    steps_path(float_tower).write_text(to_json(steps), encoding="utf-8")


def read_steps(float_tower: Path) -> TowerSteps | None:
    """None where no tower was quantized from it."""
    path = steps_path(float_tower)
    if not path.is_file():
        return None
    return from_json(TowerSteps, path.read_text(encoding="utf-8"), path, BuildError)
