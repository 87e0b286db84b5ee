"""A strip of SVG whose height is a logarithmic scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from mllm_export.records import record
from mllm_export.reports._markup import Markup, element, group


@record
class Dot:
    """One value of a line."""

    x: str
    """A share of the plot's width, as `12.34%`."""
    value: float
    title: str
    """Shown when it is pointed at."""
    radius_px: float = 3.5


@record
class LogScale:
    """Whole powers of ten from `low` to `high` over the height of a plot."""

    low: int
    high: int
    height_px: int
    margin_px: int

    def y(self, value: float) -> float:
        """Pixels from the top."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.height_px - self.margin_px - share * self._room_px, 1)

    @property
    def _room_px(self) -> int:
        return self.height_px - 2 * self.margin_px

    def grid(self, start: str) -> list[Markup]:
        """A line from `start` to the right end, and its number, for at most seven powers."""
        found = []
        for power in range(self.low, self.high + 1, max(1, (self.high - self.low) // 6)):
            y = self.y(10.0**power)
            found.append(element("line", class_="grid", x1=start, x2="100%", y1=y, y2=y))
            found.append(element("text", f"1e{power}", x=0, y=y + 4))
        return found

    def line(self, dots: Sequence[Dot], colour: str) -> Markup:
        """Dots with a line from each to the next."""
        places = [(dot.x, self.y(dot.value)) for dot in dots]
        joins = [
            element("line", class_=f"join {colour}", x1=x1, y1=y1, x2=x2, y2=y2)
            for (x1, y1), (x2, y2) in itertools.pairwise(places)
        ]
        marks = [
            element(
                "circle", element("title", dot.title), class_=colour, cx=x, cy=y, r=dot.radius_px
            )
            for dot, (x, y) in zip(dots, places, strict=True)
        ]
        return group((*joins, *marks))

    def plot(self, parts: Iterable[Markup], label: str) -> Markup:
        """The strip itself; `label` is what a reader without eyes is told."""
        return element(
            "svg",
            *parts,
            class_="strip drift",
            height=self.height_px,
            role="img",
            aria_label=label,
        )


def log_scale(values: Iterable[float], height_px: int, margin_px: int) -> LogScale:
    """The least scale that holds positive values; one power of ten at least."""
    exponents = [math.log10(value) for value in values]
    low = math.floor(min(exponents))
    high = max(low + 1, math.ceil(max(exponents)))
    return LogScale(low=low, high=high, height_px=height_px, margin_px=margin_px)
