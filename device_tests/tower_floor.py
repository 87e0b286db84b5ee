"""Layers of a tower that lose too much in 8 bits, found by measuring, and kept in float32.

Every layer is quantized alone and held against the float graph on calibration pictures; those
that cost most are widened one after another until the whole tower's worst token keeps the cosine
that the recipe asks for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm_export.checkpoint import Asked, Checkpoint
from mllm_export.device_tests.calibration import calibration_pixels
from mllm_export.device_tests.distributions import cosines
from mllm_export.device_tests.reference import Floats
from mllm_export.errors import RecipeError
from mllm_export.export.artifact import part_reader
from mllm_export.export.budget_options import product_groups
from mllm_export.export.formats.onnx import write_tower
from mllm_export.export.tower_job import TowerJob
from mllm_export.export.tower_quantize import quantize_tower
from mllm_export.pixels import tiles_of
from mllm_export.progress import Progress, Step
from mllm_export.quantize.tower_recipe import TowerRule
from mllm_export.quantize.tower_scheme import tower_scheme

if TYPE_CHECKING:
    from mllm_export.export.family import Reading

PICTURES = 16
"""Calibration pictures that are measured on."""


def floor_stage(
    source: tuple[Path, Asked],
    reading: Reading,
    job: TowerJob,
    floor: float,
    calibration: Path | None,
    progress: Progress,
) -> tuple[TowerRule, ...]:
    """Rules for the layers that have to stay wider, costliest first; none where all may be 8 bits.

    Raises: RecipeError when the floor cannot be met; CheckError for a bad calibration set.
    """
    checkpoint, weights = Checkpoint(*source), reading.weights
    with tempfile.TemporaryDirectory(prefix="floor.") as name:
        folder = Path(name)
        pixels = calibration_pixels(reading.spec, calibration, progress)
        np.save(folder / "pixels.npy", pixels)
        tower, projector = (
            part_reader(checkpoint, weights.part(part)) for part in ("tower", "projector")
        )
        write_tower(folder / "tower.float.onnx", reading.spec.vision, tower, projector)
        asked = replace(job, pixels=folder / "pixels.npy")
        measured = Measured(folder / "tower.float.onnx", pixels[:PICTURES], asked, progress)
        return widen(measured, eight_bit_groups(product_groups(reading.spec.vision), job), floor)


def eight_bit_groups(
    groups: Mapping[str, tuple[str, ...]], job: TowerJob
) -> dict[str, tuple[str, ...]]:
    """Of each group the products that the job stores in 8 bits."""
    found = {
        group: tuple(n for n in names if tower_scheme(job.schemes[n]).kind == "int8")
        for group, names in groups.items()
    }
    return {group: names for group, names in found.items() if names}


class Measured:
    """Worst-token cosine of quantized towers against their float graph."""

    def __init__(self, plain: Path, pixels: Floats, job: TowerJob, progress: Progress) -> None:
        """Runs the float graph. Shapes: pixels f32[N, C, S, S]."""
        self.job = job
        self._plain = plain
        self._pixels = pixels
        self._progress = progress
        self._expected = _embedded(plain, pixels)

    def worst(self, schemes: Mapping[str, str], item: str) -> float:
        """With these schemes in place of the job's."""
        self._progress(Step(stage="tower floor", item=item, done=0, total=0, unit="towers"))
        path = self._plain.with_name("quantized.onnx")
        quantize_tower(self._plain, path, replace(self.job, schemes=dict(schemes)))
        made = _embedded(path, self._pixels)
        return min(float(cosines(a, b).min()) for a, b in zip(self._expected, made, strict=True))


def widen(
    measured: Measured, groups: Mapping[str, tuple[str, ...]], floor: float
) -> tuple[TowerRule, ...]:
    """See `floor_stage`."""
    schemes = dict(measured.job.schemes)
    whole = measured.worst(schemes, "all in 8 bits")
    if whole >= floor or not groups:
        _require(whole, floor)
        return ()
    float_all = dict.fromkeys(schemes, "f32")
    alone = {
        group: measured.worst(float_all | {n: schemes[n] for n in names}, group)
        for group, names in groups.items()
    }
    rules: list[TowerRule] = []
    for group in sorted(groups, key=lambda one: alone[one]):
        schemes |= dict.fromkeys(groups[group], "f32")
        reached = measured.worst(schemes, f"{group} in float32")
        why = (
            f"float32: alone in 8 bits it takes the worst token's cosine to {alone[group]:.5f}; "
            f"{whole:.5f} before, {reached:.5f} without it, {floor:g} asked for"
        )
        rules.append(TowerRule(tensors=f"{group}.*", scheme="f32", why=why))
        whole = reached
        if whole >= floor:
            break
    _require(whole, floor)
    return tuple(rules)


def _require(reached: float, floor: float) -> None:
    if reached < floor:
        raise RecipeError(
            f"tower_floor {floor:g} cannot be met: with no product in 8 bits the worst token's "
            f"cosine is {reached:.5f}; give what else is quantized a wider scheme, or ask for less"
        )


def _embedded(path: Path, pixels: Floats) -> Sequence[Floats]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shapes = {port.name: tuple(port.shape) for port in session.get_inputs()}
    return [session.run(None, tile)[0] for tile in tiles_of(pixels, shapes)]
