"""The report as JUnit XML: a test case for each rung, for CI systems."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from mllm_export.report import Example, Measurement, Report, Rung
from mllm_export.reports.figures import failure_text, told, verdict_text, visible

_MARKS = {True: "kept", False: "BROKEN", None: "information"}


def to_junit(report: Report) -> str:
    """One suite; a rung that was not run is skipped, and its reason is told."""
    root = Element("testsuites")
    suite = SubElement(
        root,
        "testsuite",
        name=visible(f"parity of {report.model}, {report.recipe}, for {report.target}"),
        tests=str(len(report.rungs)),
        failures=_count(report, "failed"),
        errors="0",
        skipped=_count(report, "not_run"),
        time=f"{sum(rung.seconds for rung in report.rungs):.3f}",
    )
    properties = SubElement(suite, "properties")
    for name, value in _facts(report):
        SubElement(properties, "property", name=visible(name), value=visible(value))
    for rung in report.rungs:
        _case(suite, report, rung)
    SubElement(suite, "system-out").text = visible(verdict_text(report))
    ElementTree.indent(root)
    text: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _count(report: Report, status: str) -> str:
    return str(sum(rung.status == status for rung in report.rungs))


def _facts(report: Report) -> list[tuple[str, str]]:
    return [
        ("family", report.family),
        ("target", report.target),
        ("recipe", report.recipe),
        ("profile", report.profile),
        *((f"tool {name}", version) for name, version in report.tools),
        *((f"file {size.path}", f"{size.size_bytes} bytes") for size in report.sizes),
        *(("note", note) for note in report.notes),
    ]


def _case(suite: Element, report: Report, rung: Rung) -> None:
    case = SubElement(
        suite,
        "testcase",
        classname=visible(f"parity.{report.model}"),
        name=visible(rung.name),
        time=f"{rung.seconds:.3f}",
    )
    if rung.status == "not_run":
        SubElement(case, "skipped", message=visible(rung.reason))
    elif rung.status == "failed":
        message = visible(rung.reason or failure_text(rung))
        failure = SubElement(case, "failure", message=message, type="limit")
        failure.text = visible("\n".join(_failure_lines(rung)))
    if rung.reference or rung.measurements:
        SubElement(case, "system-out").text = visible("\n".join(_lines(rung)))


def _failure_lines(rung: Rung) -> list[str]:
    broken = [m for m in rung.measurements if m.passed is False]
    return [
        *(f"{told(m)}; {m.limit_from}" if m.limit_from else told(m) for m in broken),
        *(_example(example) for example in rung.examples),
    ]


def _lines(rung: Rung) -> list[str]:
    return [
        f"against {rung.reference or 'nothing named'}, {rung.samples} samples",
        *(_measured(m) for m in rung.measurements),
    ]


def _measured(m: Measurement) -> str:
    return f"{_MARKS[m.passed]}: {told(m)}"


def _example(example: Example) -> str:
    sides = f": original {example.reference!r}, export {example.export!r}"
    shown = sides if example.reference or example.export else ""
    return f"{example.name}{shown}; {example.note}" if example.note else f"{example.name}{shown}"
