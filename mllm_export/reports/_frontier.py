"""What a memory budget buys, drawn in the HTML page: size along, loss up."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_export.frontier import FrontierPoint, schemes_text
from mllm_export.report import Report
from mllm_export.reports._log_plot import Dot, log_scale
from mllm_export.reports._markup import NOTHING, Markup, element
from mllm_export.reports.figures import size_text

_HEIGHT_PX = 190
_MARGIN_PX = 10
_FLOOR_KL = 1e-9
"""Smaller losses are drawn here: float16 weights alone cost about as much."""


def frontier_section(report: Report) -> Markup:
    """A plot and a table; nothing for a build without a budget."""
    points = report.frontier
    if not points:
        return NOTHING
    about = (
        "Assignments of schemes to parts of the model, each the one that loses least at its size: "
        "mean KL divergence from the original on calibration questions, on a logarithmic scale. "
        "Predicted is the sum of what each part loses alone."
    )
    return element(
        "section",
        element("h2", "What a memory budget buys"),
        element("p", about, class_="soft"),
        element("figure", _keys(), _plot(points), _axis(points)),
        _table(points),
    )


def _keys() -> Markup:
    texts = (("measured", "c0"), ("predicted", "c1"))
    return element(
        "p",
        *(element("span", element("i", class_=f"key {c}"), f"{text} ") for text, c in texts),
        element("span", "the chosen one is the larger dot"),
    )


def _plot(points: Sequence[FrontierPoint]) -> Markup:
    predicted = _dots(points, [point.predicted_kl for point in points], "predicted")
    measured = _dots(points, [point.measured_kl for point in points], "measured")
    scale = log_scale((dot.value for dot in (*predicted, *measured)), _HEIGHT_PX, _MARGIN_PX)
    return scale.plot(
        (*scale.grid("8%"), scale.line(predicted, "c1"), scale.line(measured, "c0")),
        f"loss against size of {len(points)} assignments",
    )


def _dots(points: Sequence[FrontierPoint], losses: Sequence[float], title: str) -> list[Dot]:
    return [
        Dot(
            x=_x(points, point),
            value=max(loss, _FLOOR_KL),
            title=f"{size_text(point.size_bytes)}: {title} {loss:.2e} nats",
            radius_px=6 if point.chosen else 3.5,
        )
        for point, loss in zip(points, losses, strict=True)
    ]


def _x(points: Sequence[FrontierPoint], point: FrontierPoint) -> str:
    low, high = points[0].size_bytes, points[-1].size_bytes
    return f"{8 + 89 * (point.size_bytes - low) / max(1, high - low):.2f}%"


def _axis(points: Sequence[FrontierPoint]) -> Markup:
    ends = (
        element("text", size_text(points[0].size_bytes), x="8%", y=13, text_anchor="start"),
        element("text", size_text(points[-1].size_bytes), x="100%", y=13, text_anchor="end"),
    )
    return element("svg", *ends, class_="strip axis", height=18, aria_hidden="true")


def _table(points: Sequence[FrontierPoint]) -> Markup:
    heads = ("memory", "predicted", "measured", "schemes")
    body = [
        element(
            "tr",
            element("td", f"{size_text(one.size_bytes)}{', chosen' if one.chosen else ''}"),
            element("td", f"{one.predicted_kl:.2e}", class_="num"),
            element("td", f"{one.measured_kl:.2e}", class_="num"),
            element("td", schemes_text(one)),
        )
        for one in points
    ]
    head = element("tr", *(element("th", name, scope="col") for name in heads))
    return element("table", element("thead", head), element("tbody", *body), class_="frontier")
