"""`mllm-export diagnose`: which part of a bundle is to blame, and the first wrong layer of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from mllm_export.commands.arguments import (
    BundleArgument,
    EvaluationOption,
    JsonOption,
    TowerOption,
)

if TYPE_CHECKING:
    from mllm_export.diagnosis import Diagnosis


def diagnose(
    bundle: BundleArgument,
    against: Annotated[
        str, typer.Option("--against", metavar="CKPT", help="The original, or 'reference'.")
    ],
    vision_tower: TowerOption = None,
    evaluation: EvaluationOption = None,
    kv: Annotated[
        str,
        typer.Option(
            "--kv", metavar="TYPE", help="What if the KV cache were of this type, such as q8_0?"
        ),
    ] = "",
    markdown: Annotated[
        Optional[Path],  # noqa: UP045  (typer evaluates it on Python 3.10 too)
        typer.Option("--markdown", metavar="FILE", help="Also write what was found as Markdown."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Swap one part at a time with the original's, then walk the layers of the worst.

    Exit codes: 0 every part keeps its limits, 1 a part is to blame, 2 cannot be done as asked.
    """
    from mllm_export.bundle import open_bundle
    from mllm_export.commands.opening import open_checkpoint
    from mllm_export.device_tests.stage import diagnose_stage
    from mllm_export.errors import CheckFailedError
    from mllm_export.export.child import run_in_child
    from mllm_export.records import to_json
    from mllm_export.reports.diagnosis import to_markdown
    from mllm_export.terminal import ProgressBars

    opened = open_bundle(bundle)
    original = open_checkpoint(against, vision_tower)
    source = (original.path, original.asked)
    with ProgressBars() as progress:
        found: Diagnosis = run_in_child(
            "diagnose",
            diagnose_stage,
            opened.folder,
            opened.manifest,
            source,
            evaluation,
            kv,
            progress=progress,
        )
    if markdown is not None:
        markdown.write_text(to_markdown(found), encoding="utf-8")
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        _show(found)
    if found.blamed:
        raise CheckFailedError(f"{found.blamed} is to blame; see the first sentence")


def _show(found: Diagnosis) -> None:
    from mllm_export.diagnosis import SHARES
    from mllm_export.terminal import stdout

    console = stdout()
    console.print(found.sentence, markup=False)
    console.print(_parts_table(found))
    if found.walk is not None:
        console.print(_walk_table(found))
    console.print(f"{SHARES} Interaction: {found.interaction:.1%}.", markup=False)
    for note in found.notes:
        console.print(note, markup=False)


def _parts_table(found: Diagnosis) -> object:
    from rich.table import Table

    lost = "points lost" if found.trained else "answers lost, %"
    title = f"{found.model}, {found.recipe}: KL {found.kl:.4g} nats over {found.rows} positions"
    table = Table(title=title)
    for header in ("part", "alone, nats", "mended, nats", "share", lost, "mended", "limit"):
        table.add_column(header, justify="left" if header in {"part", "limit"} else "right")
    for one in found.parts:
        table.add_row(
            one.name,
            f"{one.alone_kl:.3g}",
            f"{one.mended_kl:.3g}",
            f"{one.share:.1%}",
            f"{one.alone_points:.1f}",
            f"{one.mended_points:.1f}",
            "[red]LEFT[/]" if one.outside else "kept",
        )
    return table


def _walk_table(found: Diagnosis) -> object:
    from rich.markup import escape
    from rich.table import Table

    assert found.walk is not None, "asked only where there is one"
    limit = "" if found.walk.limit is None else f", limit {found.walk.limit:g}"
    table = Table(title=f"{found.walk.part}: {found.walk.measure}{limit}")
    for header in ("behind", "value", "limit", "note"):
        table.add_column(header, justify="right" if header == "value" else "left")
    for step in found.walk.steps:
        mark = "[red]LEFT[/]" if step.outside else ""
        table.add_row(escape(step.name), f"{step.value:.4g}", mark, escape(step.note))
    return table
