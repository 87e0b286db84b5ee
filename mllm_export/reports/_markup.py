"""HTML and SVG built from parts, so that no text can become markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from mllm_export.reports.figures import visible

_VOID = frozenset({"meta", "img", "br", "circle", "line", "rect", "path"})
"""Written as one closed tag when empty; both HTML and XML parsers read that alike."""


class Markup(str):
    """Text that is markup already; every other string is escaped."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """A tag with its attributes and children; None leaves an attribute out.

    `class_` stands for class, and any other underscore for a hyphen.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is not None:
            shown = value if isinstance(value, str) else f"{value:.10g}"
            key = name.rstrip("_").replace("_", "-")
            parts.append(f'{key}="{escape(visible(shown))}"')
    head = " ".join(parts)
    if not children and tag in _VOID:
        return Markup(f"<{head}/>")
    return Markup(f"<{head}>{group(children)}</{tag}>")


def group(children: Iterable[str]) -> Markup:
    """Children one after the other; what is no markup is escaped."""
    return Markup(
        "".join(c if isinstance(c, Markup) else escape(visible(c), quote=False) for c in children)
    )


NOTHING = Markup("")
