"""Drawings of the HTML page, as SVG; positions along x are shares, so they fit any width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mllm_export.report import ArtifactSize, Measurement, TensorRow
from mllm_export.reports._markup import NOTHING, Markup, element, group
from mllm_export.reports.figures import count_text, limit_text, number, size_text, value_text

COLOURS = 8
"""Classes c0..c7 in report.css."""

_FILES_SHOWN = 10
_GRID_DB = 10
_LANE_PX = (20, 132)
"""Least and most height of a scheme's lane."""


def limit_bar(m: Measurement) -> Markup:
    """A track whose shaded part is what the limit allows, with a mark at the value."""
    if m.passed is None or m.limit is None or not math.isfinite(m.value):
        return NOTHING
    low, high = _span(m, m.limit)
    at = _share(m.value, low, high)
    edge = _share(m.limit, low, high)
    start, stop = {"at_most": (0.0, edge), "at_least": (edge, 100.0)}.get(
        m.sense, (edge - 1.5, edge + 1.5)
    )
    kind = "good" if m.passed else "bad"
    outside = m.value < low or m.value > high
    label = f"{value_text(m)}, limit {limit_text(m)}{', off the scale' if outside else ''}"
    allowed = element(
        "rect", class_="room", x=f"{start:.2f}%", y=5, width=f"{stop - start:.2f}%", height=6
    )
    tick = element("line", class_="tick", x1=f"{edge:.2f}%", x2=f"{edge:.2f}%", y1=2, y2=14)
    track = element("rect", class_="track", x=0, y=5, width="100%", height=6)
    # Off the scale is a bar at the end, not a dot: it is further away than drawn.
    x = f"{at:.2f}%"
    mark = (
        element("line", class_=f"off {kind}", x1=x, x2=x, y1=1, y2=15)
        if outside
        else element("circle", class_=kind, cx=x, cy=8, r=4.5)
    )
    title = element("title", label)
    return element(
        "svg", title, track, allowed, tick, mark, class_="bar", role="img", aria_label=label
    )


def _span(m: Measurement, limit: float) -> tuple[float, float]:
    """The part of the scale that is drawn: the limit, what it allows, and half as much beyond."""
    if m.sense == "at_most" and limit > 0:
        return (-limit if m.value < 0 else 0.0), 1.5 * limit
    if m.sense == "at_least" and 0 < limit < 1 and m.value <= 1:  # shares and cosines
        return limit - (1 - limit) / 2, 1.0
    if m.sense == "at_least" and limit > 0:
        return 0.0, 1.5 * limit if m.value <= 1.5 * limit else 1.05 * m.value
    reach = max(abs(limit), 1.0)
    return limit - reach, limit + reach


def _share(value: float, low: float, high: float) -> float:
    """Where between low and high, in percent, held inside."""
    return min(100.0, max(0.0, 100 * (value - low) / (high - low)))


def scheme_colours(tensors: Sequence[TensorRow]) -> dict[str, str]:
    """A class for each scheme, in the order of their first tensor."""
    schemes = dict.fromkeys(tensor.scheme for tensor in tensors)
    return {scheme: f"c{at % COLOURS}" for at, scheme in enumerate(schemes)}


def sqnr_chart(tensors: Sequence[TensorRow], limits: Mapping[str, float]) -> Markup:
    """A lane for each scheme, a dot for each tensor: SQNR along, place in the file down."""
    lossy = [t.sqnr_db for t in tensors if t.sqnr_db is not None and math.isfinite(t.sqnr_db)]
    if not lossy:
        return NOTHING
    low = min(0.0, math.floor(min(lossy) / _GRID_DB) * _GRID_DB)
    high = max(math.ceil(max(lossy) / _GRID_DB) * _GRID_DB, low + _GRID_DB)
    colours = scheme_colours(tensors)
    lanes = [
        _lane([t for t in tensors if t.scheme == scheme], colour, limits.get(scheme), low, high)
        for scheme, colour in colours.items()
    ]
    caption = element(
        "figcaption",
        "Signal to quantization noise of every stored tensor, in dB; further right is nearer to "
        "the original. Within a lane the file's first tensor is on top. "
        "The upright line is the scheme's limit.",
    )
    return element("figure", *lanes, _axis(low, high), caption, class_="sqnr")


def _lane(
    rows: Sequence[TensorRow], colour: str, limit: float | None, low: float, high: float
) -> Markup:
    drawn = [(t.sqnr_db, t) for t in rows if t.sqnr_db is not None and math.isfinite(t.sqnr_db)]
    parts = [element("b", element("i", class_=f"key {colour}"), rows[0].scheme)]
    parts.append(element("span", f"{count_text(len(rows), 'tensor')}{_lane_facts(rows, limit)}"))
    label = element("div", *parts, class_="lane")
    if not drawn:
        return label
    least, most = _LANE_PX
    height = min(most, max(least, 2 * len(drawn) + 10))
    lines = [
        element("line", class_="grid", x1=x, x2=x, y1=0, y2=height)
        for x in (f"{_share(db, low, high):.2f}%" for db in _grid(low, high))
    ]
    if limit is not None:
        x = f"{_share(limit, low, high):.2f}%"
        lines.append(element("line", class_="tick", x1=x, x2=x, y1=0, y2=height))
    dots = [
        element(
            "circle",
            element("title", f"{tensor.name} ({tensor.scheme}): {db:.1f} dB"),
            class_=colour if limit is None or db >= limit else "bad",
            cx=f"{_share(db, low, high):.2f}%",
            cy=round(5 + (at + 0.5) * (height - 10) / len(drawn), 1),
            r=3 if len(drawn) < 200 else 2.4,
        )
        for at, (db, tensor) in enumerate(drawn)
    ]
    text = f"SQNR of {count_text(len(drawn), 'tensor')} stored as {rows[0].scheme}"
    plot = element("svg", *lines, *dots, class_="strip", height=height, role="img", aria_label=text)
    return group((label, plot))


def _lane_facts(rows: Sequence[TensorRow], limit: float | None) -> str:
    """How many are equal, the least SQNR and whose it is."""
    values = sorted((t.sqnr_db, t.name) for t in rows if t.sqnr_db is not None)
    equal = len(rows) - len(values)
    facts = ""
    if not values:
        return ", equal to the original" if equal == 1 else ", all equal to the original"
    if equal:
        facts += f", {equal} equal to the original"
    facts += f", least {values[0][0]:.1f} dB"
    if limit is not None:
        facts += f" (limit {number(limit)})"
    return f"{facts}: {values[0][1]}"


def _grid(low: float, high: float) -> list[float]:
    step = _GRID_DB * max(1, math.ceil((high - low) / (8 * _GRID_DB)))
    return [low + step * at for at in range(int((high - low) / step) + 1)]


def _axis(low: float, high: float) -> Markup:
    # The first and last label stay inside the drawing.
    grid = _grid(low, high)
    labels = [
        element(
            "text",
            f"{db:g}{' dB' if db == grid[-1] else ''}",
            x=f"{_share(db, low, high):.2f}%",
            y=13,
            text_anchor="start" if db == low else "end" if db == high else "middle",
        )
        for db in grid
    ]
    return element("svg", *labels, class_="strip axis", height=18, aria_hidden="true")


def size_bars(sizes: Sequence[ArtifactSize]) -> Markup:
    """A bar for each file, longest first; the small ones behind a fold."""
    ordered = sorted(sizes, key=lambda size: (-size.size_bytes, size.path))
    largest = max((size.size_bytes for size in ordered), default=0) or 1
    rows = [_size_row(size, largest) for size in ordered]
    shown = element("div", *rows[:_FILES_SHOWN], class_="sizes")
    if len(rows) <= _FILES_SHOWN:
        return shown
    rest = ordered[_FILES_SHOWN:]
    total = size_text(sum(size.size_bytes for size in rest))
    summary = element("summary", f"{count_text(len(rest), 'smaller file')}, {total} together")
    folded = element("div", *rows[_FILES_SHOWN:], class_="sizes")
    return group((shown, element("details", summary, folded)))


def _size_row(size: ArtifactSize, largest: int) -> Markup:
    share = f"{100 * size.size_bytes / largest:.2f}%"
    bar = element("rect", class_="size", x=0, y=2, width=share, height=8)
    drawn = element("svg", bar, class_="bar", height=12, aria_hidden="true")
    name = element("code", size.path)
    return element("div", name, element("span", size_text(size.size_bytes)), drawn)
