"""`mllm-export bench` in rounds on this machine: ours alone, or beside other engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mllm_export.errors import CheckError
from mllm_export.records import record

if TYPE_CHECKING:
    from rich.table import Table

    from mllm_export.commands.there import Place
    from mllm_export.side_by_side import AtThreads, SideBySide

ROUNDS = 5


@record
class Beside:
    """What runs beside ours in each round, where those engines' files are, and the page."""

    peers: str | None
    """None: nothing does."""
    checkpoint: str | None
    language_model: Path | None
    mmproj: Path | None
    report: Path | None

    @staticmethod
    def asked(
        peers: str | None,
        checkpoint: str | None,
        language_model: Path | None,
        mmproj: Path | None,
        report: Path | None,
        threads: list[int] | None,
    ) -> Beside | None:
        """None where one run answers all: without --peers, a page, or several thread counts.

        Raises: CheckError for options about peers without any.
        """
        if peers is None and any(one is not None for one in (checkpoint, language_model, mmproj)):
            raise CheckError("--checkpoint, --language-model and --mmproj need --peers")
        if peers is None and report is None and len(threads or ()) < 2:
            return None
        return Beside(
            peers=peers,
            checkpoint=checkpoint,
            language_model=language_model,
            mmproj=mmproj,
            report=report,
        )

    def require_here(self, place: Place) -> None:
        """Raises: CheckError for another device than this machine."""
        if place.device != "local":
            raise CheckError(
                "--peers, --report and several --threads are for this machine alone, not for "
                f"{place.device}; leave --device out"
            )


def require_writable(page: Path) -> None:
    """A run of minutes must not end in a file that cannot be written.

    Raises: CheckError.
    """
    try:
        stood = page.exists()
        with page.open("ab"):
            pass
    except OSError as failure:
        raise CheckError(
            f"--report {page} cannot be written: {failure.strerror or failure}; name a file in a "
            "folder that exists"
        ) from failure
    if not stood:
        page.unlink()


def thread_counts(text: str | None) -> list[int] | None:
    """`1,2` as numbers; None where nothing was given.

    Raises: CheckError for what are no numbers of threads.
    """
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise CheckError(f"--threads is '{text}', needed: numbers of at least 1, such as 2 or 1,2")
    return [int(word) for word in words]


def bench_beside(
    bundle: Path,
    beside: Beside,
    threads: list[int] | None,
    rounds: int,
    tokens: int,
    pictures: int,
    as_json: bool,
) -> None:
    """Run all in turn, show the table, write the page.

    Raises: CheckError for a peer that is none, or cannot run, and a page that cannot be written.
    """
    from mllm_export.bundle import open_bundle
    from mllm_export.device_tests.peer import named_peers
    from mllm_export.device_tests.peer_files import gathered
    from mllm_export.device_tests.side_by_side import side_by_side
    from mllm_export.records import to_json
    from mllm_export.reports.side_by_side import to_html
    from mllm_export.runtimes.machine import usable_cores
    from mllm_export.terminal import ProgressBars

    if beside.report is not None:
        require_writable(beside.report)
    names = [] if beside.peers is None else named_peers(beside.peers)
    opened = open_bundle(bundle)
    checkpoint = _checkpoint(beside.checkpoint)
    with (
        ProgressBars() as progress,
        gathered(opened, names, checkpoint, beside.language_model, beside.mmproj) as files,
    ):
        found = side_by_side(
            opened,
            names,
            files,
            threads=threads or [usable_cores()],
            rounds=rounds,
            tokens=tokens,
            pictures=pictures,
            progress=progress,
        )
    if as_json:
        typer.echo(to_json(found), nl=False)
    else:
        _show(found)
    if beside.report is not None:
        beside.report.write_text(to_html(found), encoding="utf-8")


def _checkpoint(name: str | None) -> Path | None:
    """A folder, or one that comes with the package."""
    from mllm_export.commands.opening import SHIPPED, reference_folder

    if name is None:
        return None
    return reference_folder(name) if name in SHIPPED else Path(name)


def _show(found: SideBySide) -> None:
    from mllm_export.reports.side_by_side import run_text
    from mllm_export.terminal import stdout

    console = stdout()
    for run in found.runs:
        console.print(_table(found, run))
        console.print(run_text(run), markup=False)
    console.print(
        f"{found.machine}; {found.rounds} rounds, a prompt of {found.prompt_positions} positions, "
        f"{found.tokens} tokens after the first. {found.told}",
        markup=False,
    )


def _table(found: SideBySide, run: AtThreads) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from mllm_export.reports.side_by_side import cell_text

    threads = f"{run.threads} thread{'' if run.threads == 1 else 's'}"
    ratios = "" if found.alone else "; in brackets ours over it"
    table = Table(title=escape(f"{found.model}, {found.recipe}: {threads}{ratios}"))
    table.add_column("stage")
    for engine in found.engines:
        table.add_column(escape(engine.name), justify="right")
    for stage in run.stages:
        table.add_row(f"{stage.name}, {stage.unit}", *map(cell_text, stage.cells))
    return table
