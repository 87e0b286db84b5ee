"""Two reports of the same model and target: what got worse beyond noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from mllm_export.comparison import Change, Comparison
from mllm_export.device_tests.bootstrap import paired_interval
from mllm_export.errors import CheckError
from mllm_export.report import (
    YARDSTICK,
    Latency,
    Measurement,
    PairedValues,
    Report,
    Rung,
    describe,
)

LIMIT_SHARE = 0.1
"""A figure with a limit but without paired samples is worse when it moved by this share of what
the limit allows: honest rebuilds move by rounding, far less."""

SIZE_SHARE = 0.01
"""Growth of a file that counts; the same inputs give the same bytes."""

SPEED_RATIO = 1.05
"""A stage is slower when even the fast end of the ratio of quartiles is beyond this."""

UNREST = 1.1
"""Between the quartiles of the yardstick, over all that two quiet runs of one machine give."""

BUSY_RATIO = 2.0
"""What stages on a busy machine may differ by beyond the yardstick: threads that wait for the
slowest lose as much again; 1.7 measured beside one to four other programs on two cores."""

_NO_BYTES = ("report.", "golden/")
"""Files of a bundle that are not the model."""


def compare(before: Report, after: Report, names: tuple[str, str]) -> Comparison:
    """Every figure that both have.

    Raises: CheckError for reports of different models or targets.
    """
    for key in ("model", "family", "target"):
        one, other = getattr(before, key), getattr(after, key)
        if one != other:
            raise CheckError(
                f"{names[0]} is of {key} '{one}', {names[1]} of '{other}'; "
                "only reports of the same model and target can be compared"
            )
    notes = [
        f"{key} differs: {getattr(before, key)} before, {getattr(after, key)} after"
        for key in ("recipe", "profile")
        if getattr(before, key) != getattr(after, key)
    ]
    slow = list(_speed(before, after))
    if before.latency and after.latency and not slow:
        notes.append(
            f"speed is not compared: measured on {before.device or 'an unnamed machine'} before, "
            f"on {after.device or 'an unnamed machine'} after"
        )
    return Comparison(
        before=names[0],
        after=names[1],
        model=after.model,
        target=after.target,
        changes=(*_quality(before, after), *_sizes(before, after), *slow),
        notes=tuple(notes),
    )


def _quality(before: Report, after: Report) -> Iterator[Change]:
    now = {rung.name: rung for rung in after.rungs}
    for old in before.rungs:
        new = now.get(old.name)
        if new is None or new.status == "not_run":
            if old.status != "not_run":
                yield _lost(old)
            continue
        yield from _rung(old, new)


def _lost(rung: Rung) -> Change:
    return Change(
        kind="quality",
        what=f"{rung.name}: measured",
        before=1,
        after=0,
        unit="",
        worse=True,
        better=False,
        bound="a rung that was run before must be run again",
    )


def _rung(old: Rung, new: Rung) -> Iterator[Change]:
    if old.status == "passed" and new.status == "failed" and not new.measurements:
        yield _lost(old)
    before = {m.name: m for m in old.measurements}
    pairs = _pairs(old, new)
    for m in new.measurements:
        earlier = before.get(m.name)
        if earlier is not None and m.sense != "info" and m.limit is not None:
            yield _measured(new.name, earlier, m, pairs.get(m.name))


def _pairs(old: Rung, new: Rung) -> dict[str, tuple[PairedValues, PairedValues]]:
    """Values sample by sample, where the samples are the same, by the measurement they explain."""
    before = {one.measurement: one for one in old.paired}
    return {
        one.measurement: (before[one.measurement], one)
        for one in new.paired
        if one.measurement in before
        and before[one.measurement].samples_sha256 == one.samples_sha256
    }


def _measured(
    rung: str, old: Measurement, new: Measurement, pair: tuple[PairedValues, PairedValues] | None
) -> Change:
    assert new.limit is not None, "asked only for what has a limit"
    sign = -1.0 if new.sense == "at_least" else 1.0
    moved = sign * (new.value - old.value)
    # Another recipe may be allowed more; what it costs counts by the tighter of the two.
    room = min(_room(old), _room(new))
    if pair is not None:
        low, high = _interval(*pair)
        worse, better = low > 0 and moved > room, high < 0 and moved < -room
        bound = (
            f"95 % interval of the paired difference {low:.4g} to {high:.4g} over "
            f"{len(pair[0].values)} samples, and {room:.4g}"
        )
    else:
        worse, better = moved > room, moved < -room
        bound = f"{LIMIT_SHARE:.0%} of what its limit allows, {room:.4g}"
    if old.passed and new.passed is False:
        worse, bound = True, f"it kept its limit before and leaves it now: {describe(new)}"
    return Change(
        kind="quality",
        what=f"{rung}: {new.name}",
        before=old.value,
        after=new.value,
        unit=new.unit,
        worse=worse,
        better=better and not worse,
        bound=bound,
    )


def _interval(old: PairedValues, new: PairedValues) -> tuple[float, float]:
    """Of the loss that came with the new one: positive is worse."""
    losses = np.subtract(new.values, old.values)
    return paired_interval(losses)


def _room(m: Measurement) -> float:
    """The move that counts, from the limit; none where a value must be exact."""
    if m.limit is None:
        return math.inf
    if m.sense == "equals":
        return 0.0
    if m.sense == "at_least" and 0 < m.limit < 1:
        return LIMIT_SHARE * (1 - m.limit)
    return LIMIT_SHARE * abs(m.limit)


def _sizes(before: Report, after: Report) -> Iterator[Change]:
    old, new = _files(before), _files(after)
    for path in sorted(old.keys() | new.keys()):
        was, now = old.get(path, 0), new.get(path, 0)
        yield Change(
            kind="size",
            what=path,
            before=was,
            after=now,
            unit="bytes",
            worse=now > was * (1 + SIZE_SHARE),
            better=now < was * (1 - SIZE_SHARE),
            bound=f"{SIZE_SHARE:.0%} more bytes than before",
        )


def _files(report: Report) -> Mapping[str, int]:
    return {s.path: s.size_bytes for s in report.sizes if not s.path.startswith(_NO_BYTES)}


def _speed(before: Report, after: Report) -> Iterator[Change]:
    """Ratios, and only on one machine."""
    if not before.device or before.device != after.device:
        return
    old = {(one.stage, one.threads): one for one in before.latency}
    new = {(one.stage, one.threads): one for one in after.latency}
    for (stage, threads), one in new.items():
        earlier = old.get((stage, threads))
        if stage != YARDSTICK and earlier is not None and earlier.median_ms > 0:
            key = YARDSTICK, threads
            machine = _quartiles(old[key], new[key]) if key in old and key in new else None
            yield _slower(earlier, one, machine)


def _slower(old: Latency, new: Latency, machine: tuple[float, float] | None) -> Change:
    """`machine` is how many times as long the yardstick took: what other programs cost."""
    low, high = _quartiles(old, new)
    told, beyond = f"{low:.3g} to {high:.3g} by the quartiles", SPEED_RATIO
    if machine is not None:
        told += f", the yardstick's {machine[0]:.3g} to {machine[1]:.3g}"
        # Neither a busy machine before nor one after may make the difference.
        low, high = low / max(1.0, machine[1]), high / min(1.0, machine[0])
        if max(machine[1], 1 / max(machine[0], 1e-9)) > UNREST:
            beyond *= BUSY_RATIO
            told += ": the machine was busy"
    return Change(
        kind="speed",
        what=f"{new.stage}: ratio of medians",
        before=1.0,
        after=new.median_ms / old.median_ms,
        unit="times",
        worse=low > beyond,
        better=high < 1 / beyond,
        bound=f"{told}; all of it beyond {beyond:g}{' and that' if machine else ''}",
    )


def _quartiles(old: Latency, new: Latency) -> tuple[float, float]:
    """Least and most that the middle halves' ratio can be."""
    return (
        new.low_ms / old.high_ms if old.high_ms else math.inf,
        new.high_ms / old.low_ms if old.low_ms else math.inf,
    )
