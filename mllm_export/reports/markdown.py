"""The report as Markdown: for pull requests and terminals."""

from __future__ import annotations

from collections.abc import Iterator

from mllm_export.report import Example, Measurement, Report, Rung
from mllm_export.reports.figures import (
    WORDS,
    limit_text,
    rung_title,
    size_text,
    value_text,
    verdict_text,
)

_WORST_TENSORS = 8


def to_markdown(report: Report) -> str:
    """The whole report; the same report gives the same text."""
    lines = [
        f"# Parity of {_cell(report.model)}",
        "",
        f"**{_cell(verdict_text(report))}**",
        "",
        f"Family {_cell(report.family)}, recipe {_cell(report.recipe)}, "
        f"target {_cell(report.target)}, limits of profile {_cell(report.profile)}.",
        "",
        "| rung | verdict | samples | measurement | value | limit |",
        "| --- | --- | ---: | --- | ---: | ---: |",
    ]
    for rung in report.rungs:
        lines.extend(_rows(rung))
    for rung in report.rungs:
        lines.extend(_section(rung))
    lines.extend(_sizes(report))
    lines.extend(["", *(f"- {_cell(note)}" for note in report.notes)])
    return "\n".join(lines) + "\n"


def _rows(rung: Rung) -> Iterator[str]:
    head = f"| {rung.name} | {WORDS[rung.status]} | {rung.samples or ''} |"
    if not rung.measurements:
        yield f"{head} {_cell(rung.reason)} | | |"
    for at, measurement in enumerate(rung.measurements):
        yield f"{head if not at else '| | | |'} {_measured(measurement)} |"


def _measured(measurement: Measurement) -> str:
    broken = measurement.passed is False
    value = value_text(measurement)
    shown = f"**{value}**" if broken else value
    return f"{_cell(measurement.name)} | {shown} | {limit_text(measurement)}"


def _section(rung: Rung) -> Iterator[str]:
    worst = [tensor for tensor in rung.tensors if tensor.sqnr_db is not None]
    worst.sort(key=lambda tensor: tensor.sqnr_db or 0.0)
    if rung.status != "failed" and not rung.examples and not worst:
        return
    yield from ("", f"## {_cell(rung_title(rung))}", "")
    if rung.status == "failed":
        yield from (f"Failed: {_cell(rung.reason)}", "")
    for example in rung.examples:
        yield _example(example)
    if worst:
        yield from ("| tensor | scheme | SQNR, dB |", "| --- | --- | ---: |")
        for tensor in worst[:_WORST_TENSORS]:
            yield f"| {_cell(tensor.name)} | {_cell(tensor.scheme)} | {tensor.sqnr_db:.1f} |"


def _example(example: Example) -> str:
    sides = f": original {_code(example.reference)}, export {_code(example.export)}"
    has_sides = example.reference or example.export
    note = f" ({_cell(example.note)})" if example.note else ""
    return f"- {_cell(example.name)}{sides if has_sides else ''}{note}"


def _sizes(report: Report) -> Iterator[str]:
    if not report.sizes:
        return
    yield from ("", "## Sizes", "", "| file | size |", "| --- | ---: |")
    for size in report.sizes:
        yield f"| {_cell(size.path)} | {size_text(size.size_bytes)} |"


def _code(text: str) -> str:
    plain = _flat(text).replace("`", "'")
    return f"`{plain}`" if text else "(empty)"


def _cell(text: str) -> str:
    """Text that can end neither a table's cell nor its row, nor begin a tag."""
    return _flat(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _flat(text: str) -> str:
    return " ".join(text.split())
