"""Drawings of the HTML report, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from mllm_export.report import ArtifactSize, Measurement, TensorRow
from mllm_export.reports.figures import size_text, used_share

_COLOURS = 6
"""Classes c0..c5 in report.css."""

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 920, 260, 46, 24, 14
_EXACT_DB_STEP = 10


def limit_bar(measurement: Measurement) -> str:
    """How much of the limit is used: full at the tick is at the limit, red is past it."""
    share = used_share(measurement)
    if share is None:
        return ""
    # The tick stands at 80 of 100, so that a failure has room to show.
    length = min(100.0, 80.0 * share) if share > 0 else 0.0
    kind = "bad" if measurement.passed is False else "good"
    title = f"{min(share, 99.99):.0%} of what the limit allows"
    return (
        f'<svg class="bar" viewBox="0 0 100 10" role="img" aria-label="{title}">'
        f"<title>{title}</title>"
        '<rect class="track" x="0" y="3" width="100" height="4" rx="2"/>'
        f'<rect class="{kind}" x="0" y="3" width="{max(length, 1.5):.1f}" height="4" rx="2"/>'
        '<line class="tick" x1="80" y1="0.5" x2="80" y2="9.5"/></svg>'
    )


def sqnr_chart(tensors: Sequence[TensorRow]) -> str:
    """A dot for each stored tensor, in file order; tensors without loss stand at the top line."""
    lossy = [t.sqnr_db for t in tensors if t.sqnr_db is not None]
    low = math.floor(min(lossy, default=0.0) / _EXACT_DB_STEP) * _EXACT_DB_STEP
    high = math.ceil(max(lossy, default=10.0) / _EXACT_DB_STEP) * _EXACT_DB_STEP
    low, high = (low, high) if high > low else (low, low + _EXACT_DB_STEP)
    exact = high + _EXACT_DB_STEP
    schemes = list(dict.fromkeys(t.scheme for t in tensors))
    parts = [_frame(low, high, exact)]
    for at, tensor in enumerate(tensors):
        x = _LEFT + (at + 0.5) * (_WIDTH - _LEFT) / len(tensors)
        value = exact if tensor.sqnr_db is None else tensor.sqnr_db
        told = "no loss" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f} dB"
        colour = schemes.index(tensor.scheme) % _COLOURS
        title = escape(f"{tensor.name} ({tensor.scheme}): {told}")
        parts.append(
            f'<circle class="c{colour}" cx="{x:.1f}" cy="{_y(value, low, exact):.1f}" r="3">'
            f"<title>{title}</title></circle>"
        )
    legend = "".join(
        f'<span class="key"><i class="c{at % _COLOURS}"></i>{escape(scheme)}</span>'
        for at, scheme in enumerate(schemes)
    )
    return (
        f'<figure><svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Signal to quantization noise of every tensor">{"".join(parts)}</svg>'
        f"<figcaption>{legend}<span class=key>each dot is a stored tensor, in file order"
        "</span></figcaption></figure>"
    )


def size_bars(sizes: Sequence[ArtifactSize]) -> str:
    """A bar for each file, longest first."""
    ordered = sorted(sizes, key=lambda size: -size.size_bytes)
    largest = max((size.size_bytes for size in ordered), default=1)
    rows = "".join(
        f"<tr><td><code>{escape(size.path)}</code></td>"
        f'<td class="num">{size_text(size.size_bytes)}</td><td class="wide">'
        f'<svg class="size" viewBox="0 0 100 8" preserveAspectRatio="none">'
        f'<rect class="c0" width="{max(0.3, 100 * size.size_bytes / largest):.2f}" height="8"/>'
        "</svg></td></tr>"
        for size in ordered
    )
    return f'<table class="sizes">{rows}</table>'


def _frame(low: float, high: float, exact: float) -> str:
    lines = []
    step = _EXACT_DB_STEP * max(1, round((high - low) / 60))
    value = low
    while value <= high:
        lines.append(_grid_line(_y(value, low, exact), f"{value:g} dB"))
        value += step
    lines.append(_grid_line(_y(exact, low, exact), "exact"))
    return "".join(lines)


def _grid_line(y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>'
    )


def _y(value: float, low: float, exact: float) -> float:
    span = _HEIGHT - _BOTTOM - _TOP
    return _TOP + (exact - value) / (exact - low) * span
