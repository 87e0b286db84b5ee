"""The drift of layers and the latency of stages in the HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_export.report import YARDSTICK, LayerDrift, Report
from mllm_export.reports._log_plot import Dot, log_scale
from mllm_export.reports._markup import NOTHING, Markup, element
from mllm_export.reports.figures import number

_HEIGHT_PX = 150
_MARGIN_PX = 8
_FLOOR = 1e-9
"""Smaller errors are drawn here: float32 itself is no finer than 6e-8."""

_SERIES = (
    ("relative error of the state", "c0"),
    ("1 - cosine of the worst position", "c1"),
)


def drift_section(report: Report) -> Markup:
    """A plot and a table for each part whose layers were measured; nothing where none was."""
    plots = [
        _part(part, [one for one in report.drift if one.part == part])
        for part in dict.fromkeys(one.part for one in report.drift)
    ]
    if not plots:
        return NOTHING
    about = (
        "States behind each layer, export against original, on a logarithmic scale. A fault lifts "
        "the line at its own layer and it stays up; quantization lifts it little by little."
    )
    return element(
        "section",
        element("h2", "Drift, layer by layer"),
        element("p", about, class_="soft"),
        *plots,
    )


def _part(part: str, rows: Sequence[LayerDrift]) -> Markup:
    values = [_values(row) for row in rows]
    scale = log_scale((value for pair in values for value in pair), _HEIGHT_PX, _MARGIN_PX)
    series = [
        scale.line(_dots(rows, [pair[at] for pair in values], title), colour)
        for at, (title, colour) in enumerate(_SERIES)
    ]
    keys = [
        element("span", element("i", class_=f"key {colour}"), f"{title} ")
        for title, colour in _SERIES
    ]
    text = f"drift of {len(rows)} states of the {part}"
    plot = scale.plot((*scale.grid("6%"), *series), text)
    names = element("p", f"{rows[0].name} on the left, {rows[-1].name} on the right", class_="soft")
    return element("figure", element("h3", part), element("p", *keys), plot, names, _table(rows))


def _values(row: LayerDrift) -> tuple[float, float]:
    return max(row.relative_error, _FLOOR), max(1 - row.worst_cosine, _FLOOR)


def _x(at: int, count: int) -> str:
    return f"{6 + 92 * (at / max(1, count - 1) if count > 1 else 0.5):.2f}%"


def _dots(rows: Sequence[LayerDrift], values: Sequence[float], title: str) -> list[Dot]:
    return [
        Dot(x=_x(at, len(rows)), value=value, title=f"{row.name}: {title} {number(value)}")
        for at, (row, value) in enumerate(zip(rows, values, strict=True))
    ]


def _table(rows: Sequence[LayerDrift]) -> Markup:
    heads = ("behind", "relative error", "mean cosine", "worst cosine")
    body = [
        element(
            "tr",
            element("td", element("code", row.name)),
            *(
                element("td", number(value), class_="num")
                for value in (row.relative_error, row.mean_cosine, row.worst_cosine)
            ),
        )
        for row in rows
    ]
    head = element("tr", *(element("th", name, scope="col") for name in heads))
    table = element("table", element("thead", head), element("tbody", *body), class_="tensors")
    return element("details", element("summary", f"Table of {len(rows)} states"), table)


def latency_section(report: Report) -> Markup:
    """Medians with quartiles; nothing where no stage was timed."""
    if not report.latency:
        return NOTHING
    heads = ("stage", "median", "middle half", "repeats", "threads")
    body = [
        element(
            "tr",
            element("td", one.stage),
            element("td", f"{number(one.median_ms)} ms", class_="num"),
            element("td", f"{number(one.low_ms)} to {number(one.high_ms)} ms", class_="num"),
            element("td", str(one.repeats), class_="num"),
            element("td", str(one.threads), class_="num"),
        )
        for one in report.latency
    ]
    head = element("tr", *(element("th", name, scope="col") for name in heads))
    about = f"Measured on {report.device or 'an unnamed machine'}; information, never a verdict."
    if any(one.stage == YARDSTICK for one in report.latency):
        about += (
            " The yardstick is a fixed calculation, timed beside the stages: it says how fast the "
            "machine itself was, for a comparison with another report."
        )
    return element(
        "section",
        element("h2", "Latency"),
        element("p", about, class_="soft"),
        element("table", element("thead", head), element("tbody", *body), class_="latency"),
    )
