"""What a memory budget buys, drawn in the HTML page: size along, loss up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from mllm_export.frontier import FrontierPoint, schemes_text
from mllm_export.report import Report
from mllm_export.reports._markup import NOTHING, Markup, element, group
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
    values = [max(v, _FLOOR_KL) for p in points for v in (p.predicted_kl, p.measured_kl)]
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    series = [
        _line(points, [p.predicted_kl for p in points], "predicted", "c1", low, high),
        _line(points, [p.measured_kl for p in points], "measured", "c0", low, high),
    ]
    return element(
        "svg",
        *_decades(low, high),
        *series,
        class_="strip drift",
        height=_HEIGHT_PX,
        role="img",
        aria_label=f"loss against size of {len(points)} assignments",
    )


def _line(
    points: Sequence[FrontierPoint],
    losses: Sequence[float],
    title: str,
    colour: str,
    low: int,
    high: int,
) -> Markup:
    places = [
        (_x(points, point), _y(loss, low, high)) for point, loss in zip(points, losses, strict=True)
    ]
    joins = [
        element("line", class_=f"join {colour}", x1=x1, y1=y1, x2=x2, y2=y2)
        for (x1, y1), (x2, y2) in itertools.pairwise(places)
    ]
    dots = [
        element(
            "circle",
            element("title", f"{size_text(point.size_bytes)}: {title} {loss:.2e} nats"),
            class_=colour,
            cx=x,
            cy=y,
            r=6 if point.chosen else 3.5,
        )
        for point, loss, (x, y) in zip(points, losses, places, strict=True)
    ]
    return group((*joins, *dots))


def _y(loss: float, low: int, high: int) -> float:
    share = (math.log10(max(loss, _FLOOR_KL)) - low) / (high - low)
    return round(_HEIGHT_PX - _MARGIN_PX - share * (_HEIGHT_PX - 2 * _MARGIN_PX), 1)


def _x(points: Sequence[FrontierPoint], point: FrontierPoint) -> str:
    low, high = points[0].size_bytes, points[-1].size_bytes
    return f"{8 + 89 * (point.size_bytes - low) / max(1, high - low):.2f}%"


def _decades(low: int, high: int) -> list[Markup]:
    step = max(1, (high - low) // 6)
    found = []
    for power in range(low, high + 1, step):
        y = _y(10.0**power, low, high)
        found.append(element("line", class_="grid", x1="8%", x2="100%", y1=y, y2=y))
        found.append(element("text", f"1e{power}", x=0, y=y + 4))
    return found


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
