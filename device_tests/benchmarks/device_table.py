"""The reference's recipes on emulated cores: parity with this machine, answers, instructions.

    python -m mllm_export.device_tests.benchmarks.device_table BUNDLE... --questions 100 -o table.md

Every row is one visit: tower, teacher-forced rows and greedy answers against this machine, then
tower, prefill and one decoded token counted. `--twice` does all of it again and says what moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from mllm_export.bundle import Bundle, open_bundle
from mllm_export.device_tests.cost import Cost, changes, measure_cost, write_record
from mllm_export.device_tests.device import Settings, open_device
from mllm_export.device_tests.device_report import device_report
from mllm_export.device_tests.emulation.cpu import cpu_names
from mllm_export.device_tests.samples import reference_evaluation
from mllm_export.progress import silent
from mllm_export.records import record
from mllm_export.report import Report

_TIMEOUT_S = 3600.0


@record
class Row:
    """One bundle on one core."""

    bundle: str
    recipe: str
    cpu: str
    measured: dict[str, float]
    verdict: str
    seconds: float
    """Of the emulation: no time of the device's."""
    cost: Cost

    def line(self) -> str:
        """As a row of the table."""
        tower, prefill, decode = (self.cost.regions[n] for n in ("tower", "prefill", "decode"))
        found = self.measured
        per_token = prefill.instructions / self.cost.prefill_positions
        cells = (
            self.recipe,
            self.cpu,
            f"{found['tower, worst-token cosine']:.7f}",
            f"{found['decoder, mean KL']:.1e}",
            f"{found['same greedy answers']:.2%}",
            f"{tower.instructions / 1e6:.1f}",
            f"{per_token / 1e6:.3f}",
            f"{decode.instructions / 1e6:.3f}",
            f"{tower.dot_products + tower.matrix_products:,}",
            f"{decode.dot_products + decode.matrix_products:,}",
            self.verdict,
        )
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| recipe | core | worst-token cosine | mean KL, nats | same answers | tower, M instr. "
    "| prefill per position, M | decode per token, M | tower dot and matrix products "
    "| decode dot and matrix products | verdict |\n" + "| --- " * 11 + "|"
)


def visit(bundle: Bundle, cpu: str, evaluation: Path, questions: int) -> Row:
    """Parity and cost of one bundle on one core."""
    link = open_device(f"qemu:{cpu}", Settings(timeout_s=_TIMEOUT_S), silent)
    report: Report = device_report(
        bundle,
        link,
        evaluation=evaluation,
        questions=questions,
        timeout_s=_TIMEOUT_S,
        progress=silent,
    )
    (rung,) = report.rungs
    return Row(
        bundle=bundle.folder.name,
        recipe=bundle.manifest.recipe,
        cpu=cpu,
        measured={one.name: one.value for one in rung.measurements},
        verdict=rung.status,
        seconds=rung.seconds,
        cost=measure_cost(bundle, link, _TIMEOUT_S, silent),
    )


def moved(first: Row, second: Row) -> Iterator[str]:
    """What a second visit saw otherwise."""
    where = f"{first.recipe} on {first.cpu}"
    for name, value in first.measured.items():
        if name != "peak memory" and second.measured[name] != value:
            yield f"{where}: {name} {value:.9g}, then {second.measured[name]:.9g}"
    for change in changes(first.cost, second.cost):
        yield f"{where}: {change}"


def main(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles for an arm64 target.")],
    out: Annotated[Path, typer.Option("-o", help="The table, as Markdown.")],
    cpu: Annotated[list[str] | None, typer.Option(help="A core; all by default.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="The shipped one by default.")] = None,
    questions: Annotated[int, typer.Option(help="How many are asked.")] = 100,
    twice: Annotated[bool, typer.Option("--twice", help="Visit again and compare.")] = False,
    record_cost: Annotated[Path | None, typer.Option(help="Also write the costs here.")] = None,
) -> None:
    """Measure, and write after every row, so that a cut run leaves what it had."""
    lines, ends = [HEAD], []
    for folder in bundles:
        bundle = open_bundle(folder)
        for core in cpu or cpu_names():
            row = visit(bundle, core, evaluation or reference_evaluation(), questions)
            lines.append(row.line())
            if record_cost is not None:
                write_record(record_cost, row.cost)
            if twice:
                again = visit(bundle, core, evaluation or reference_evaluation(), questions)
                found = list(moved(row, again))
                ends.append(f"- {row.recipe} on {core}, again: {'; '.join(found) or 'the same'}")
            text = "\n".join((*lines, "", f"{questions} questions.", "", *ends))
            out.write_text(text + "\n", encoding="utf-8")
            typer.echo(f"{row.line()} ({row.seconds:.0f} s)", err=True)


if __name__ == "__main__":
    typer.run(main)
