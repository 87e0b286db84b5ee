"""The report as Markdown, for a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mllm_export.frontier import schemes_text
from mllm_export.report import YARDSTICK, Example, Measurement, Report, Rung
from mllm_export.reports.figures import (
    WORDS,
    absent_rungs,
    limit_text,
    number,
    rung_title,
    seconds_text,
    size_text,
    value_text,
    verdict_text,
    visible,
)

_SPECIAL = re.compile(r"[\\`*_\[\]|~$]")
"""Each means something to Markdown or to GitHub's additions, wherever it stands."""

_FIRST = re.compile(r"^(?:[#=]|[+-](?=[ -]|$)|\d+(?=[.)](?: |$)))")
"""These mean something where a line or a list item begins."""

_FILES_SHOWN = 12


def to_markdown(report: Report) -> str:
    """The summary; the same report gives the same text."""
    lines = [
        f"## Parity of {escaped(report.model)}",
        "",
        f"**{escaped(verdict_text(report))}**",
        "",
        f"Family {escaped(report.family)}, recipe {escaped(report.recipe)}, target "
        f"{escaped(report.target)}, limits of profile {escaped(report.profile)}.",
        "",
        "| rung | verdict | samples | measurement | value | limit |",
        "| --- | --- | ---: | --- | ---: | ---: |",
    ]
    for rung in report.rungs:
        lines.extend(_rows(rung))
    absent = absent_rungs(report)
    if absent:
        lines += ["", f"Not part of this check: {', '.join(absent)}."]
    for rung in report.rungs:
        if rung.status == "failed":
            lines.extend(_failure(rung))
    lines.extend(_sizes(report))
    lines.extend(_frontier(report))
    lines.extend(_latency(report))
    if report.notes:
        lines += ["", *(f"- {escaped(note)}" for note in report.notes)]
    if report.tools:
        tools = ", ".join(f"{name} {version}" for name, version in report.tools)
        lines += ["", f"Made with {escaped(tools)}."]
    return "\n".join(lines) + "\n"


def _rows(rung: Rung) -> Iterator[str]:
    word = WORDS[rung.status]
    verdict = f"**{word}**" if rung.status == "failed" else word
    head = f"| {escaped(rung.name)} | {verdict} | {rung.samples or ''} |"
    if not rung.measurements:
        yield f"{head} {escaped(rung.reason)} | | |"
    for at, m in enumerate(rung.measurements):
        yield f"{'| | | |' if at else head} {_measured(m)} |"


def _measured(m: Measurement) -> str:
    name, value = escaped(m.name), escaped(f"{value_text(m)} {m.unit}")
    if m.passed is False:
        name, value = f"**{name}**", f"**{value}**"
    return f"{name} | {value} | {limit_text(m)}"


def _failure(rung: Rung) -> Iterator[str]:
    """What a reader needs to find the fault."""
    yield from ("", f"### {escaped(rung.name)} failed", "")
    about = rung_title(rung)
    against = f"against {rung.reference}" if rung.reference else ""
    took = seconds_text(rung.seconds) if rung.seconds else ""
    yield escaped("; ".join(filter(None, (about, against, took)))) or "No reference was named."
    yield ""
    broken = [m for m in rung.measurements if m.passed is False]
    for m in broken:
        where = f": {escaped(m.limit_from)}" if m.limit_from else ""
        value = escaped(f"{value_text(m)} {m.unit}")
        yield f"- **{escaped(m.name)}** {value}, limit {limit_text(m)}{where}"
    if not broken:
        yield f"- {escaped(rung.reason) or 'no reason was recorded'}"
    for example in rung.examples:
        yield _example(example)


def _example(example: Example) -> str:
    sides = f": original {_answer(example.reference)}, export {_answer(example.export)}"
    shown = sides if example.reference or example.export else ""
    note = f" ({escaped(example.note)})" if example.note else ""
    return f"- {escaped(example.name)}{shown}{note}"


def _answer(text: str) -> str:
    return f'"{escaped(text)}"' if text.strip() else "(empty)"


def _sizes(report: Report) -> Iterator[str]:
    if not report.sizes:
        return
    ordered = sorted(report.sizes, key=lambda size: (-size.size_bytes, size.path))
    yield from ("", "| file | size |", "| --- | ---: |")
    for size in ordered[:_FILES_SHOWN]:
        yield f"| {escaped(size.path)} | {size_text(size.size_bytes)} |"
    rest = ordered[_FILES_SHOWN:]
    if rest:
        total = size_text(sum(size.size_bytes for size in rest))
        yield f"| {len(rest)} smaller | {total} |"
    total = size_text(sum(size.size_bytes for size in ordered))
    yield f"| **together** | **{total}** |"


def _frontier(report: Report) -> Iterator[str]:
    if not report.frontier:
        return
    yield from ("", "| memory | predicted KL, nats | measured KL, nats | schemes |")
    yield "| ---: | ---: | ---: | --- |"
    for one in report.frontier:
        mark = "**" if one.chosen else ""
        size, schemes = size_text(one.size_bytes), escaped(schemes_text(one))
        values = f"{one.predicted_kl:.2e} | {one.measured_kl:.2e}"
        yield f"| {mark}{size}{mark} | {values} | {schemes}{', chosen' if one.chosen else ''} |"


def _latency(report: Report) -> Iterator[str]:
    if not report.latency:
        return
    stages = [one for one in report.latency if one.stage != YARDSTICK]
    times = ", ".join(f"{one.stage} {number(one.median_ms)} ms" for one in stages)
    yield from ("", escaped(f"Latency on {report.device}, no verdict: {times} (medians)."))


def escaped(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    flat = " ".join(visible(text).split())
    safe = _SPECIAL.sub(r"\\\g<0>", flat.replace("&", "&amp;")).replace("<", "&lt;")
    safe = _FIRST.sub(_escaped_first, safe)
    # Neither a name behind an @ nor an address may become a link.
    return safe.replace(">", "&gt;").replace("@", "@\u2060").replace("://", ":\u2060//")


def _escaped_first(found: re.Match[str]) -> str:
    text = found[0]
    return f"{text}\\" if text[0].isdigit() else f"\\{text}"
