"""A comparison as Markdown, for a pull request."""

from __future__ import annotations

from mllm_export.comparison import Change, Comparison
from mllm_export.reports.figures import number, size_text
from mllm_export.reports.markdown import escaped


def to_markdown(found: Comparison) -> str:
    """The sentence, what got worse or better with its bound, the rest behind a fold."""
    lines = [
        f"## {escaped(found.model)} for {escaped(found.target)}: what changed",
        "",
        f"**{escaped(found.sentence)}**",
        "",
        f"From {escaped(found.before)} to {escaped(found.after)}.",
    ]
    moved = [one for one in found.changes if one.worse or one.better]
    rest = [one for one in found.changes if one not in moved]
    lines += _table(sorted(moved, key=lambda one: one.better))
    if rest:
        title = f"<details><summary>{len(rest)} figures within their bounds</summary>"
        lines += ["", title, *_table(rest), "", "</details>"]
    if found.notes:
        lines += ["", *(f"- {escaped(note)}" for note in found.notes)]
    return "\n".join(lines) + "\n"


def _table(changes: list[Change]) -> list[str]:
    if not changes:
        return []
    rows = [
        f"| {_verdict(one)} | {escaped(one.what)} | {_value(one, one.before)} "
        f"| {_value(one, one.after)} | {escaped(one.bound)} |"
        for one in changes
    ]
    head = [
        "| | figure | before | after | counts when beyond |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    return ["", *head, *rows]


def _verdict(one: Change) -> str:
    if one.worse:
        return "**worse**"
    return "better" if one.better else "same"


def _value(one: Change, value: float) -> str:
    if one.kind == "size":
        return size_text(int(value))
    return escaped(f"{number(value)} {one.unit}")
