"""`mllm-export compare`: did anything get worse between two bundles, reports, or checks?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from mllm_export.commands.arguments import JsonOption

if TYPE_CHECKING:
    from rich.table import Table

    from mllm_export.comparison import Change, Comparison
    from mllm_export.report import Report


def compare(
    before: Annotated[
        Path, typer.Argument(metavar="A", help="A bundle, a report.json, or its folder.")
    ],
    after: Annotated[
        Optional[Path],  # noqa: UP045  (typer evaluates it on Python 3.10 too)
        typer.Argument(metavar="[B]", help="What came after A; left out with --history."),
    ] = None,
    history: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--history", metavar="FILE", help="Compare A with the last check that passed there."
        ),
    ] = None,
    markdown: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--markdown", metavar="FILE", help="Also write a summary for a pull request."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also list what stayed within its bounds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List what got worse beyond noise in quality, size or speed; better is no failure.

    Exit codes: 0 nothing got worse, 1 something did, 2 cannot be compared.
    """
    from mllm_export.device_tests.comparison import compare as hold
    from mllm_export.errors import CheckError, CheckFailedError
    from mllm_export.history import bundle_sha256_of, last_good
    from mllm_export.records import to_json
    from mllm_export.reports.comparison import to_markdown
    from mllm_export.terminal import print_note

    if (after is None) == (history is None):
        raise CheckError("give two bundles or reports, or one and --history FILE")
    if history is not None:
        new, new_name = load_report(before), str(before)
        line = last_good(history, new, bundle_sha256_of(before))
        if line is None:
            print_note(f"{history} holds no check before this one: there is nothing to compare")
            return
        old, old_name = line.report, f"the check of {line.when} in {history}"
    else:
        assert after is not None, "either is given"
        old, old_name = load_report(before), str(before)
        new, new_name = load_report(after), str(after)
    found = hold(old, new, (old_name, new_name))
    if markdown is not None:
        markdown.write_text(to_markdown(found), encoding="utf-8")
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        _show(found, everything)
    if found.regressions:
        raise CheckFailedError(found.sentence)


def load_report(path: Path) -> Report:
    """The report of a bundle, of a report's folder, or a report.json itself.

    Raises: CheckError when there is none.
    """
    from mllm_export.errors import CheckError
    from mllm_export.report import read_report

    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise CheckError(
            f"{path} holds no report.json; make one with: "
            "mllm-export check BUNDLE --against CKPT --report DIR"
        )
    return read_report(file)


def _show(found: Comparison, everything: bool) -> None:
    from mllm_export.terminal import stdout

    moved = [one for one in found.changes if one.worse or one.better]
    rest = [one for one in found.changes if one not in moved]
    console = stdout()
    shown = [*sorted(moved, key=lambda one: one.better), *(rest if everything else [])]
    if shown:
        console.print(_table(found, shown))
    if rest and not everything:
        console.print(f"{len(rest)} figures stayed within their bounds (--all lists them)")
    console.print(found.sentence, markup=False)
    for note in found.notes:
        console.print(note, markup=False)


def _table(found: Comparison, changes: list[Change]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(f"{found.model} for {found.target}: {found.before} to {found.after}")
    )
    for header in ("kind", "figure", "before", "after", "verdict", "counts when"):
        table.add_column(header, justify="right" if header in {"before", "after"} else "left")
    for one in changes:
        cells = (one.kind, one.what, f"{one.before:.6g}", f"{one.after:.6g}")
        table.add_row(*map(escape, cells), _verdict(one), escape(one.bound))
    return table


def _verdict(one: Change) -> str:
    if one.worse:
        return "[red]WORSE[/]"
    return "[green]better[/]" if one.better else "same"
