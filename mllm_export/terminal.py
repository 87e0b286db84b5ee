"""What the command shows: progress and errors on stderr, tables on stdout."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from mllm_export.progress import Step

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from mllm_export.report import Measurement, Report

_MARKS = {"passed": "[green]passed[/]", "failed": "[red]FAILED[/]", "not_run": "[dim]not run[/]"}


def stdout() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def stderr() -> Console:
    """The console for progress, logs and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_error(message: str) -> None:
    """One line on stderr."""
    from rich.text import Text

    stderr().print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def print_note(message: str) -> None:
    """A remark on stderr."""
    from rich.text import Text

    stderr().print(Text.assemble(("note: ", "bold yellow"), message), soft_wrap=True)


class ProgressBars:
    """Draws `Step`s on stderr: stage, item, share done, time left. Use it as a context manager."""

    def __init__(self) -> None:
        """Nothing is drawn until the first step."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._bars: Progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}% {task.fields[amount]:>17}"),
            TimeElapsedColumn(),
            Remaining(),
            TextColumn("{task.fields[item]}"),
            console=stderr(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing."""
        self._bars.stop()

    def __call__(self, step: Step) -> None:
        """Show one step."""
        if step.stage not in self._tasks:
            self._tasks[step.stage] = self._bars.add_task(
                step.stage, total=step.total, item="", amount=""
            )
        done = step.done >= step.total
        self._bars.update(
            self._tasks[step.stage],
            completed=step.done,
            total=step.total,
            item="" if done else _short(step.item),
            amount=_amount(step),
        )


def _short(item: str) -> str:
    return item if len(item) <= 40 else f"...{item[-37:]}"


def _amount(step: Step) -> str:
    if step.unit == "B":
        return f"{step.done / 2**20:.0f}/{step.total / 2**20:.0f} MiB"
    return f"{step.done}/{step.total} {step.unit}"


def mib(size_bytes: int) -> str:
    """A size as MiB, with a decimal below 100."""
    value = size_bytes / 2**20
    return f"{value:.1f} MiB" if value < 100 else f"{value:,.0f} MiB"


def parity_table(report: Report) -> Table:
    """The ladder: a row for every measurement."""
    from rich.table import Table

    table = Table(title=f"Parity of {report.model}, {report.recipe}, for {report.target}")
    for header in ("rung", "verdict", "measured", "value", "limit"):
        table.add_column(header, justify="right" if header == "value" else "left")
    for rung in report.rungs:
        rows = rung.measurements or (None,)
        for number, measurement in enumerate(rows):
            first = (rung.name, _MARKS[rung.status]) if number == 0 else ("", "")
            table.add_row(
                *first, *_cells(measurement, rung.reason), end_section=number + 1 == len(rows)
            )
    return table


def _cells(measurement: Measurement | None, reason: str) -> tuple[str, str, str]:
    if measurement is None:
        return (f"[dim]{reason}[/]", "", "")
    signs = {"at_least": ">=", "at_most": "<=", "equals": "=", "info": ""}
    limit = ""
    if measurement.limit is not None and measurement.sense != "info":
        limit = f"{signs[measurement.sense]} {measurement.limit:g}"
    broken = measurement.passed is False
    value = f"{measurement.value:.6g} {measurement.unit}".strip()
    return (measurement.name, f"[red]{value}[/]" if broken else value, limit)
