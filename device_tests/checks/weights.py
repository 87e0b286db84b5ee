"""Every stored tensor, dequantized, against the checkpoint's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mllm_export.device_tests.check import NEEDS_ORIGINAL, Context
from mllm_export.device_tests.folded import FoldedStored
from mllm_export.device_tests.originals import Original, OriginalKey
from mllm_export.device_tests.profile import Limits
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored import FLOATS, Stored, standing_in
from mllm_export.device_tests.stored_coreml import CoremlStored
from mllm_export.device_tests.stored_tower import OnnxBlocks, OnnxInt8
from mllm_export.export.planned_storage import planned_storage
from mllm_export.plan import Plan
from mllm_export.planned import recall
from mllm_export.progress import Step
from mllm_export.quantize.tower_scheme import BLOCKS, COREML_ALONE, QUANTIZED, tower_scheme_names
from mllm_export.report import Example, Measurement, Rung, TensorRow, not_run, rung_of

_CHUNK_VALUES = 4 << 20
"""Values compared at once: 16 MiB for each side."""

_SMALL = 1e-4
"""Blocks of smaller values count as if this were their largest: float16 scales run out there."""

_TINY = float(np.finfo(np.float32).tiny)
"""A step of nothing at all."""

_FURTHEST = float(np.finfo(np.float32).max)
"""What an error that is no number counts as: far over any limit, and JSON can hold it."""

_ROUNDED = {"F16": np.float16, "F32": np.float32, "f32": np.float32, "f16": np.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What storing one tensor lost."""

    sqnr_db: float | None
    """None when nothing was."""
    largest_error: float
    """In steps for the tower's schemes, else over the largest value of its block."""
    unrounded: int
    """Values of a float scheme that are not the source's, rounded."""
    bad: int = 0
    """NaN and infinity: float16 ends at 65504."""


class Weights:
    """Names, shapes, then values."""

    measures = (
        "keys that are not the config's",
        "tensors missing",
        "tensors that should not be there",
        "tensors of another shape",
        "tensors stored otherwise than planned",
        "values that are not the source's, rounded",
        "values that are no numbers",
    )

    def run(self, context: Context) -> Rung:
        """Compare every tensor of both files."""
        live = context.live
        if live is None:
            return not_run("weights", NEEDS_ORIGINAL)
        context.subject.rest()
        sides = (
            (
                context.stored.tower,
                standing_in(context.stored.tower, live.reference.tower_originals()),
            ),
            (context.stored.decoder, live.reference.decoder_originals()),
        )
        names = _Names(sides, context.plan)
        losses: dict[str, tuple[str, Loss]] = {}
        for stored, originals in sides:
            for name in _common(stored, originals):
                one = stored[name]
                self._tell(context, name, len(losses))
                losses[name] = one.scheme, loss_of(one, originals[name])
        wrong_keys = _wrong_keys(context.stored.keys, live.reference.decoder_keys())
        unrounded = sum(loss.unrounded for _, loss in losses.values())
        measure = context.limits.measure
        bad = sum(loss.bad for _, loss in losses.values())
        text = "values that are not the source's, rounded"
        return rung_of(
            "weights",
            reference="the checkpoint's own tensors, in the order gguf-py and the authors name",
            samples=len(losses),
            measurements=(
                measure("weights", "keys that are not the config's", len(wrong_keys)),
                *names.measurements(context),
                measure("weights", text, unrounded),
                measure("weights", "values that are no numbers", bad),
                *by_scheme(context.limits, losses, context.calibrated),
            ),
            examples=wrong_keys,
            tensors=_rows(losses, context.plan),
        )

    @staticmethod
    def _tell(context: Context, name: str, done: int) -> None:
        total = len(context.stored.tower) + len(context.stored.decoder)
        context.progress(
            Step(stage="check weights", item=name, done=done, total=total, unit="tensors")
        )


def _wrong_keys(
    found: Mapping[str, object], expected: Sequence[OriginalKey]
) -> tuple[Example, ...]:
    """Keys that say something else than the config; numbers to float32's precision."""
    return tuple(
        Example(name=one.key, reference=str(one.value), export=str(found.get(one.key, "absent")))
        for one in expected
        if not _equal(found.get(one.key, one.default), one.value)
    )


def _equal(found: object, expected: object) -> bool:
    if isinstance(found, int | float) and isinstance(expected, int | float):
        return math.isclose(found, expected, rel_tol=1e-6)
    return found == expected


class _Names:
    """What is there, and in what shape, against what should be."""

    def __init__(
        self,
        sides: tuple[tuple[Mapping[str, Stored], Mapping[str, Original]], ...],
        plan: Plan | None,
    ) -> None:
        self._sides = sides
        self._plan = plan

    def measurements(self, context: Context) -> tuple[Measurement, ...]:
        measure = context.limits.measure
        missing = sum(len(set(originals) - set(stored)) for stored, originals in self._sides)
        extra = sum(len(set(stored) - set(originals)) for stored, originals in self._sides)
        misshapen = sum(
            stored[name].shape != originals[name].shape
            for stored, originals in self._sides
            for name in set(stored) & set(originals)
        )
        return (
            measure("weights", "tensors missing", missing),
            measure("weights", "tensors that should not be there", extra),
            measure("weights", "tensors of another shape", misshapen),
            *self._planned(context),
        )

    def _planned(self, context: Context) -> Iterator[Measurement]:
        found = {n: s for stored, _ in self._sides for n, s in stored.items()}
        remembered = context.bundle.manifest.planned
        if self._plan is not None:
            other = _unlike(self._plan, found)
        elif remembered:
            schemes = recall(remembered, found)
            # What is missing altogether has a measurement of its own.
            other = sum(schemes.get(name) != one.scheme for name, one in found.items())
        else:
            return
        yield context.limits.measure("weights", "tensors stored otherwise than planned", other)


def _unlike(plan: Plan, found: Mapping[str, Stored]) -> int:
    planned = planned_storage(plan)
    stored = {name: (one.scheme, _file_shape(one)) for name, one in found.items()}
    return sum(planned.get(n) != stored.get(n) for n in planned.keys() | stored.keys())


def _file_shape(one: Stored) -> tuple[int, ...]:
    return tuple(one.data.shape if isinstance(one, OnnxBlocks) else one.shape)


@np.errstate(over="ignore", invalid="ignore")  # what is no number is counted
def loss_of(stored: Stored, original: Original) -> Loss:
    """Read both a few rows at a time and compare."""
    signal = noise = 0.0
    worst, unrounded, bad = 0.0, 0, 0
    for start, stop in _chunks(original.shape):
        source = original.values(start, stop)
        if isinstance(stored, FoldedStored):
            # Where it was rounded: the scales taken out again would cost a float its last bit.
            source = stored.fold(source, start, stop)
            made = stored.inner.values(start, stop)
        else:
            made = stored.values(start, stop)
        if stored.scheme in FLOATS:
            unrounded += _unrounded(stored.scheme, source, made)
        finite = np.isfinite(made)
        bad += int(made.size - finite.sum())
        signal += _energy(source)
        noise += _energy(np.where(finite, made - source, 0))
        # An infinity is as far off as can be, whatever stands in its place.
        off = np.where(finite, np.abs(made - source), np.inf)
        largest = _largest_error(stored, source, off, (start, stop))
        # NaN, from a scale that is NaN, is no less than anything.
        worst = max(worst, largest if largest < _FURTHEST else _FURTHEST)
    return Loss(
        sqnr_db=_sqnr_db(signal, noise, worst),
        largest_error=worst,
        unrounded=unrounded,
        bad=bad,
    )


def _sqnr_db(signal: float, noise: float, worst: float) -> float | None:
    if noise == 0:
        # What is no number is no part of the noise, and as little an equal value.
        return None if worst < _FURTHEST else 0.0
    return 10 * math.log10(max(signal / noise, 1e-300))


def _energy(values: Floats) -> float:
    """Sum of the squares of what is finite."""
    flat = values.ravel()
    found = float(flat @ flat)
    if math.isfinite(found):
        return found
    # One bit of an exponent makes a value whose square float32 cannot hold.
    wide = flat[np.isfinite(flat)].astype(np.float64)
    return float(wide @ wide)


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    rows = shape[0]
    step = max(1, _CHUNK_VALUES // max(1, math.prod(shape[1:])))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _unrounded(scheme: str, source: Floats, made: Floats) -> int:
    if scheme == "BF16":
        import ml_dtypes

        return int((source.astype(ml_dtypes.bfloat16).astype(np.float32) != made).sum())
    return int((source.astype(_ROUNDED[scheme]).astype(np.float32) != made).sum())


def _largest_error(stored: Stored, source: Floats, off: Floats, rows: tuple[int, int]) -> float:
    off = np.where(np.isfinite(off), off, np.inf)
    stepped = OnnxInt8 | OnnxBlocks | CoremlStored
    # Core ML keeps its floats in the same class.
    if isinstance(stored, stepped) and stored.scheme not in FLOATS:
        return float((off / np.maximum(stored.steps(*rows), _TINY)).max())
    columns = source.shape[-1]
    width = _block_columns(stored.scheme)
    width = columns if columns % width else width
    top = np.abs(source).reshape(-1, width).max(axis=-1)
    return float((off.reshape(-1, width).max(axis=-1) / np.maximum(top, _SMALL)).max())


def _block_columns(scheme: str) -> int:
    """Columns that share a scale, or 32 where each value stands for itself."""
    import gguf

    types = gguf.GGMLQuantizationType
    values = gguf.GGML_QUANT_SIZES[types[scheme]][0] if scheme in types.__members__ else 1
    return int(values) if values > 1 else 32


def _common(stored: Mapping[str, Stored], originals: Mapping[str, Original]) -> list[str]:
    return [n for n in originals if n in stored and stored[n].shape == originals[n].shape]


def by_scheme(
    limits: Limits, losses: Mapping[str, tuple[str, Loss]], calibrated: bool = False
) -> Iterator[Measurement]:
    """The worst tensor of every quantized scheme, against the profile's limits for it."""
    grouped: dict[str, list[Loss]] = defaultdict(list)
    for scheme, loss in losses.values():
        if scheme not in FLOATS:
            grouped[scheme].append(loss)
    profile = limits.profile
    for scheme, found in sorted(grouped.items()):
        limit = profile.scheme(scheme, calibrated=calibrated)
        weighed = ", columns weighed" if calibrated else ""
        where = f"profile {profile.name}, {scheme}{weighed}: {limit.reason}"
        yield Measurement(
            name=f"{scheme}: least SQNR",
            value=min((loss.sqnr_db for loss in found if loss.sqnr_db is not None), default=999.0),
            unit="dB",
            sense="at_least",
            limit=limit.sqnr_db,
            limit_from=where,
        )
        yield Measurement(
            name=f"{scheme}: largest error",
            value=max(loss.largest_error for loss in found),
            unit="steps"
            if scheme in (*tower_scheme_names(), *COREML_ALONE)
            else "of its block's largest value",
            sense="at_most",
            limit=limit.largest_error,
            limit_from=where,
        )


def _rows(losses: Mapping[str, tuple[str, Loss]], plan: Plan | None) -> tuple[TensorRow, ...]:
    notes = {
        tensor.name.removesuffix(QUANTIZED).removesuffix(BLOCKS): tensor.note
        for artifact in (plan.artifacts if plan else ())
        for tensor in artifact.tensors
    }
    return tuple(
        TensorRow(name=name, scheme=scheme, sqnr_db=loss.sqnr_db, note=notes.get(name, ""))
        for name, (scheme, loss) in losses.items()
    )


CHECK = Weights()
