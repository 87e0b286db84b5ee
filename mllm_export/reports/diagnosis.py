"""A diagnosis as Markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from mllm_export.diagnosis import SHARES, Diagnosis, LayerWalk
from mllm_export.reports.figures import number
from mllm_export.reports.markdown import escaped


def to_markdown(found: Diagnosis) -> str:
    """The sentence, the shares, the walk; the same diagnosis gives the same text."""
    lost = "points lost" if found.trained else "other answers, %"
    lines = [
        f"## What is wrong with {escaped(found.model)}, {escaped(found.recipe)}",
        "",
        f"**{escaped(found.sentence)}**",
        "",
        f"| part | alone, nats | mended, nats | share | {lost} alone | mended | limits |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in found.parts:
        name, mark = (f"**{one.name}**", "**left**") if one.outside else (one.name, "kept")
        lines.append(
            f"| {name} | {number(one.alone_kl)} | {number(one.mended_kl)} | {one.share:.1%} "
            f"| {one.alone_points:.1f} | {one.mended_points:.1f} | {mark} |"
        )
    if found.walk is not None:
        lines.extend(_walk(found.walk))
    notes = [f"Interaction: {found.interaction:.1%}. {SHARES}", *found.notes]
    return "\n".join([*lines, "", *(f"- {escaped(note)}" for note in notes)]) + "\n"


def _walk(walk: LayerWalk) -> Iterator[str]:
    limit = "" if walk.limit is None else f" (limit {walk.limit:g})"
    yield from ("", f"| {walk.part}, behind | {walk.measure}{limit} | |", "| --- | ---: | --- |")
    for step in walk.steps:
        value = f"**{number(step.value)}**" if step.outside else number(step.value)
        yield f"| {escaped(step.name)} | {value} | {escaped(step.note)} |"
