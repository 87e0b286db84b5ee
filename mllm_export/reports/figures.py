"""Numbers as a reader wants them; shared by every form of the report."""

from __future__ import annotations

import math

from mllm_export.report import Measurement, Report, Rung

WORDS = {"passed": "passed", "failed": "FAILED", "not_run": "not run"}
_SENSES = {"at_least": "≥", "at_most": "≤", "equals": "="}
_NEAR_ONE = 1e-4


def number(value: float) -> str:
    """Four digits that matter; what is nearly 1 by its distance from it."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    distance = 1 - value
    if 0 < abs(distance) < _NEAR_ONE:
        sign = "-" if distance > 0 else "+"
        return f"1 {sign} {abs(distance):.1e}"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def value_text(measurement: Measurement) -> str:
    """The value with its unit."""
    return " ".join(filter(None, (number(measurement.value), measurement.unit)))


def limit_text(measurement: Measurement) -> str:
    """The limit with its sense; empty for what is only information."""
    if measurement.passed is None or measurement.limit is None:
        return ""
    return f"{_SENSES[measurement.sense]} {measurement.limit:g}"


def used_share(measurement: Measurement) -> float | None:
    """How much of what the limit allows was used: over 1 is a failure, None is unjudged."""
    limit, value = measurement.limit, measurement.value
    if measurement.passed is None or limit is None:
        return None
    if measurement.sense == "equals" or limit == 0:
        return 0.0 if measurement.passed else 2.0
    if measurement.sense == "at_most":
        return max(0.0, value / limit)
    if limit < 1:  # shares and cosines, of which 1 is the best
        return max(0.0, (1 - value) / (1 - limit))
    return limit / value if value > 0 else 2.0


def size_text(size_bytes: int) -> str:
    """Bytes, KiB, MiB or GiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def verdict_text(report: Report) -> str:
    """One sentence: passed, or which stage to look at first."""
    first = report.first_failure
    if first is not None:
        return f"Failed at {first.name}: {first.reason}"
    if not report.passed:
        return "Nothing was checked"
    judged = sum(m.passed is not None for rung in report.rungs for m in rung.measurements)
    rungs = sum(rung.status == "passed" for rung in report.rungs)
    return f"Passed: {rungs} rungs, {judged} limits held"


def measurement_of(report: Report, rung: str, name: str) -> Measurement | None:
    """That measurement, if it was taken."""
    return next(
        (m for r in report.rungs if r.name == rung for m in r.measurements if m.name == name), None
    )


def rung_title(rung: Rung) -> str:
    """What a rung compares, in a line. Source: the design's section on parity."""
    return {
        "pixels": "Preprocessing: picture to pixels",
        "prompt": "Prompt: template and tokenizer to ids",
        "tower": "Tower and projector: pixels to embeddings",
        "weights": "Stored weights against the checkpoint",
        "logits": "Decoder, teacher-forced on image and text",
        "text": "Greedy answers",
        "task": "Accuracy on questions with known answers",
        "device": "The same on the device",
        "controls": "Does the answer depend on the picture?",
    }.get(rung.name, rung.name)
