"""Numbers and sentences as a reader wants them; shared by every form of the report."""

from __future__ import annotations

import math
import re

from mllm_export.report import RUNGS, Measurement, Report, Rung, Sense, describe

WORDS = {"passed": "passed", "failed": "failed", "not_run": "not run"}
_SIGNS: dict[Sense, str] = {"at_least": "≥", "at_most": "≤", "equals": "="}
_DIGITS = 4
_NEAR_ONE = 1e-6
_MOST_DIGITS = 17
"""Enough to tell any two float64 apart."""

_NOT_TEXT = re.compile("[^\t\n\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 refuses or discourages. Source: its section 2.2, Char."""

_TITLES = {
    "pixels": "preprocessing, picture to pixels",
    "prompt": "template and tokenizer, question to ids",
    "tower": "vision tower and projector, pixels to embeddings",
    "weights": "stored tensors against the checkpoint's",
    "logits": "decoder, teacher-forced on image and text",
    "text": "greedy answers, token by token",
    "task": "accuracy on questions with known answers",
    "device": "the same on the device",
    "controls": "does the answer depend on the picture",
}
"""What each rung compares. Source: the design's section on parity."""

MEANING = (
    "A pass means that every figure with a limit kept it, on the samples counted here and against "
    "the reference named. It says nothing of speed, nor of pictures and questions unlike these."
)


def visible(text: str) -> str:
    """Text that HTML and XML can hold: control characters become pictures of themselves."""
    return _NOT_TEXT.sub(_picture, text.replace("\r\n", "\n"))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def number(value: float, limit: float | None = None) -> str:
    """Four digits that matter, and as many as it takes to stand on its own side of the limit.

    A value just below 1 gets two digits of its distance from 1, or is told by that distance.
    """
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    if 0 < 1 - value < _NEAR_ONE and _same_side(1 - float(f"{1 - value:.1e}"), value, limit):
        return f"1 - {_plain(f'{1 - value:.1e}')}"
    digits = _DIGITS
    if 0 < 1 - value < 1e-2:
        digits = min(_MOST_DIGITS, math.ceil(-math.log10(1 - value)) + 1)
    while digits < _MOST_DIGITS and not _same_side(float(f"{value:.{digits}g}"), value, limit):
        digits += 1
    return _plain(f"{value:.{digits}g}")


def _same_side(shown: float, value: float, limit: float | None) -> bool:
    if limit is None:
        return shown != 1  # what is not 1 must not read as 1
    return (shown > limit, shown < limit) == (value > limit, value < limit)


def _plain(text: str) -> str:
    """`1e-05` as `1e-5`."""
    return re.sub(r"e([+-])0+(?=\d)", r"e\1", text).replace("e+", "e")


def value_text(m: Measurement) -> str:
    """The value, without its unit."""
    return number(m.value, None if m.passed is None else m.limit)


def limit_text(m: Measurement) -> str:
    """The limit with its sign; empty for what is only information."""
    if m.passed is None or m.limit is None:
        return ""
    return f"{_SIGNS[m.sense]} {_plain(f'{m.limit:.12g}')}"


def size_text(size_bytes: int) -> str:
    """Bytes, KiB, MiB or GiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def seconds_text(seconds: float) -> str:
    """Seconds, or minutes and seconds."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"


def count_text(count: int, noun: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def judged(rung: Rung) -> list[Measurement]:
    """The measurements that were held against a limit."""
    return [m for m in rung.measurements if m.passed is not None]


def rungs_with(report: Report, status: str) -> list[Rung]:
    """The rungs with that verdict, in order."""
    return [rung for rung in report.rungs if rung.status == status]


def absent_rungs(report: Report) -> list[str]:
    """Rungs of the ladder that the report does not speak of."""
    spoken = {rung.name for rung in report.rungs}
    return [name for name in RUNGS if name not in spoken]


def told(m: Measurement) -> str:
    """A measurement as a clause, as `describe` does, but never rounded onto its limit."""
    words = {"at_least": "at least", "at_most": "at most", "equals": "exactly"}
    if m.limit is None or m.sense == "info":
        return describe(m)
    value = " ".join(filter(None, (value_text(m), m.unit)))
    return f"{m.name} {value} ({words[m.sense]} {_plain(f'{m.limit:.12g}')})"


def failure_text(rung: Rung) -> str:
    """The figures that broke their limits, or the reason where nothing was measured."""
    broken = [told(m) for m in rung.measurements if m.passed is False]
    return "; ".join(broken) or rung.reason or "no reason was recorded"


def verdict_text(report: Report) -> str:
    """One or two sentences: passed, or which rung failed first and by what figures."""
    first = report.first_failure
    if first is not None:
        others = [rung.name for rung in rungs_with(report, "failed") if rung is not first]
        more = f" Failed too: {', '.join(others)}." if others else ""
        return f"Failed at {first.name}: {failure_text(first).rstrip('.')}.{more}"
    ran = len(rungs_with(report, "passed"))
    if not ran:
        return "Not passed: no rung was run, so nothing is known of this export."
    left = len(rungs_with(report, "not_run"))
    limits = sum(len(judged(rung)) for rung in report.rungs)
    text = f"Passed: {count_text(ran, 'rung')} run, {count_text(limits, 'limit')} kept."
    return f"{text} {count_text(left, 'rung')} could not be run." if left else text


def measurement_of(report: Report, rung: str, name: str) -> Measurement | None:
    """That measurement, if it was taken."""
    return next(
        (m for r in report.rungs if r.name == rung for m in r.measurements if m.name == name), None
    )


def rung_title(rung: Rung) -> str:
    """What a rung compares; empty for one that the ladder does not know."""
    return _TITLES.get(rung.name, "")
