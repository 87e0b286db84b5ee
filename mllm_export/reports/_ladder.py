"""The ladder of the HTML page: a strip of verdicts, then every measurement of every rung."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_export.report import Measurement, Report, Rung, describe
from mllm_export.reports._charts import limit_bar
from mllm_export.reports._markup import NOTHING, Markup, element, group
from mllm_export.reports.figures import (
    WORDS,
    absent_rungs,
    count_text,
    limit_text,
    rung_title,
    seconds_text,
    value_text,
)

_MINUS = "\u2212"
_MARKS = {"passed": "✓", "failed": "✕", "not_run": "\u2013"}


def ladder_strip(rungs: Sequence[Rung]) -> Markup:
    """Every rung with its verdict, in order, as links to its figures."""
    steps = [
        element(
            "a",
            element("i", _MARKS[rung.status], aria_hidden="true"),
            element("b", rung.name),
            element("span", WORDS[rung.status]),
            href=f"#rung-{at}",
            class_=f"step {rung.status}",
        )
        for at, rung in enumerate(rungs, 1)
    ]
    return element("nav", *steps, class_="strip-of-rungs", aria_label="Rungs") if steps else NOTHING


def ladder_section(report: Report) -> Markup:
    """The table: a group of rows for each rung."""
    head = element(
        "thead",
        element(
            "tr",
            element("th", "measurement", scope="col"),
            element("th", "value", scope="col", class_="num"),
            element("th", "limit", scope="col", class_="limit"),
            element("th", "value against limit", scope="col"),
        ),
    )
    groups = [_rung(at, rung) for at, rung in enumerate(report.rungs, 1)]
    legend = (
        "The shaded part of a bar is what the limit allows, the mark is the value; an upright mark "
        "at the end is off the scale. Figures without a limit are information."
    )
    return element(
        "section",
        element("h2", "The ladder"),
        element("p", legend, class_="soft"),
        element("table", head, *groups, class_="ladder"),
        _absent(report),
    )


def _absent(report: Report) -> Markup:
    names = absent_rungs(report)
    if not names:
        return NOTHING
    text = f"Not part of this check, so nothing is claimed for it: {', '.join(names)}."
    return element("p", text, class_="soft")


def _rung(at: int, rung: Rung) -> Markup:
    facts = [count_text(rung.samples, "sample")] if rung.samples else []
    facts += [seconds_text(rung.seconds)] if rung.seconds else []
    title = element(
        "div",
        element("b", rung.name),
        badge(rung),
        element("span", ", ".join(facts), class_="facts"),
        class_="rung-name",
    )
    lines = [title]
    about = rung_title(rung)
    against = f"against {rung.reference}" if rung.reference else ""
    told = "; ".join(filter(None, (about, against)))
    if told:
        lines.append(element("div", told[0].upper() + told[1:], class_="soft"))
    # The rows below say it already where measurements broke their limits.
    broken = "; ".join(describe(m) for m in rung.measurements if m.passed is False)
    if rung.reason and rung.reason != broken:
        lines.append(element("div", _reason(rung), class_=f"reason {rung.status}"))
    head = element(
        "tr", element("th", *lines, colspan=4, scope="rowgroup"), class_=f"rung {rung.status}"
    )
    rows = [_measurement(m) for m in rung.measurements]
    return element("tbody", head, *rows, id=f"rung-{at}")


def _reason(rung: Rung) -> str:
    prefix = {"failed": "Failed", "not_run": "Not run"}.get(rung.status)
    return f"{prefix}: {rung.reason}" if prefix else rung.reason


def badge(rung: Rung) -> Markup:
    """The verdict as a small label."""
    return element("span", WORDS[rung.status], class_=f"badge {rung.status}")


def _measurement(m: Measurement) -> Markup:
    kind = {None: "info", False: "broken", True: "kept"}[m.passed]
    why = element("small", m.limit_from) if m.limit_from else NOTHING
    unit = element("small", f" {m.unit}") if m.unit else NOTHING
    shown = element("data", value_text(m).replace("-", _MINUS), value=repr(m.value))
    limit = limit_text(m).replace("-", _MINUS)
    return element(
        "tr",
        element("td", m.name, why, class_="what"),
        element("td", group((shown, unit)), class_="num"),
        element("td", limit, class_="limit"),
        element("td", limit_bar(m), class_="plot"),
        class_=kind,
    )
