"""The report as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.resources import files

from mllm_export.report import Measurement, Report
from mllm_export.reports._charts import size_bars
from mllm_export.reports._details import example_section, tensor_section
from mllm_export.reports._drift import drift_section, latency_section
from mllm_export.reports._frontier import frontier_section
from mllm_export.reports._ladder import ladder_section, ladder_strip
from mllm_export.reports._markup import NOTHING, Markup, element, group
from mllm_export.reports.figures import (
    MEANING,
    judged,
    measurement_of,
    number,
    rungs_with,
    size_text,
    verdict_text,
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A browser refuses whatever would leave the page."""


def to_html(report: Report) -> str:
    """The whole page, also well-formed XML; the same report gives the same bytes."""
    sections = (
        _header(report),
        ladder_section(report),
        *(tensor_section(rung) for rung in report.rungs),
        drift_section(report),
        example_section(report),
        _sizes(report),
        frontier_section(report),
        latency_section(report),
        _origin(report),
    )
    return page(f"{_word(report)}: parity of {report.model}, {report.recipe}", sections)


def page(title: str, sections: Iterable[Markup]) -> str:
    """Sections in our style, in one file that a browser keeps to itself."""
    style = (files("mllm_export.reports") / "report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Markup(f"\n{style}")),
    )
    body = element("body", element("main", *(Markup(f"\n{one}") for one in sections if one)))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _word(report: Report) -> str:
    if report.passed:
        return "Passed"
    return "Failed" if report.first_failure else "Not passed"


def _header(report: Report) -> Markup:
    facts = (
        ("family", report.family),
        ("target", report.target),
        ("recipe", report.recipe),
        ("limits", f"profile {report.profile}"),
    )
    kind = "passed" if report.passed else "failed" if report.first_failure else "not_run"
    return element(
        "header",
        element("p", "Parity report", class_="eyebrow"),
        element("h1", report.model),
        element(
            "p",
            *(element("span", element("small", f"{name} "), text) for name, text in facts),
            class_="facts-line",
        ),
        element(
            "div",
            element("p", verdict_text(report), class_="sentence"),
            _hint(report),
            _not_run(report),
            class_=f"verdict {kind}",
        ),
        element("p", MEANING, class_="soft"),
        _cards(report),
        ladder_strip(report.rungs),
    )


def _hint(report: Report) -> Markup:
    if not report.first_failure:
        return NOTHING
    text = "Start there: what the rungs after it found may follow from it."
    return element("p", text)


def _not_run(report: Report) -> Markup:
    rows = [
        element("li", element("b", rung.name), f": {rung.reason or 'no reason was recorded'}")
        for rung in rungs_with(report, "not_run")
    ]
    if not rows:
        return NOTHING
    return group((element("p", "Not run, so neither passed nor failed:"), element("ul", *rows)))


def _cards(report: Report) -> Markup:
    cards = [
        element("div", element("b", value), element("span", label), class_="card")
        for value, label in _key_figures(report)
    ]
    return element("div", *cards, class_="cards") if cards else NOTHING


def _key_figures(report: Report) -> Iterator[tuple[str, str]]:
    """What somebody who reads one line wants to know."""
    held = [m for rung in report.rungs for m in judged(rung)]
    if held:
        kept = sum(m.passed is True for m in held)
        yield f"{kept} of {len(held)}", "limits kept"
    before = measurement_of(report, "task", "accuracy of the original")
    after = measurement_of(report, "task", "accuracy of the export")
    if before and after:
        yield f"{before.value:.1f}\u00a0→ {after.value:.1f}\u00a0%", "accuracy, original to export"
    for rung, name, label in (
        ("tower", "worst-token cosine", "cosine of the worst image token"),
        ("logits", "top-1 agreement", "same likeliest next token"),
    ):
        found = measurement_of(report, rung, name)
        if found:
            yield _card_value(found), label
    if report.sizes:
        yield size_text(sum(size.size_bytes for size in report.sizes)), "bundle on disk"


def _card_value(m: Measurement) -> str:
    return (
        f"{m.value:.2%}".replace("%", "\u00a0%")
        if "agreement" in m.name
        else number(m.value, m.limit)
    )


def _sizes(report: Report) -> Markup:
    if not report.sizes:
        return NOTHING
    return element("section", element("h2", "Files"), size_bars(report.sizes))


def _origin(report: Report) -> Markup:
    notes = [element("li", note) for note in report.notes]
    tools = [
        element("div", element("dt", name), element("dd", version))
        for name, version in report.tools
    ]
    if not notes and not tools:
        return NOTHING
    return element(
        "section",
        element("h2", "How this was measured"),
        element("ul", *notes) if notes else NOTHING,
        element("dl", *tools, class_="tools") if tools else NOTHING,
    )
