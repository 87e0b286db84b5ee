"""Parity of every family's small twin and of both trained ones, in float and in 4 bits.

    python -m mllm_export.device_tests.benchmarks.parity -o table.md
    python -m mllm_export.device_tests.benchmarks.parity --only cobra --recipe int8

Each is built as a user builds it, checks and all, for linux-x86_64; the figures are those of the
report in the bundle. Small twins have random weights, so that only what is measured alone says
much of them: `engine alone` is llama.cpp against the original's code on the file's own weights.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mllm_export.commands.opening import SHIPPED, reference_evaluation
from mllm_export.errors import CheckError
from mllm_export.export.family import FAMILIES
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.records import from_json
from mllm_export.report import Report

RECIPES = ("f16", "int4")
TARGET = "linux-x86_64"

FIGURES = (
    ("tower", "worst-token cosine", "worst-token cosine", ".7f"),
    ("tower", "relative error", "tower's error", ".1e"),
    ("logits", "mean KL", "mean KL, nats", ".2g"),
    ("logits", "engine alone: mean KL", "engine alone, nats", ".2g"),
    ("logits", "top-1 agreement", "top-1", ".4f"),
    ("text", "exact answers", "same answers", ".3g"),
    ("text", "largest gap at the first differing token", "gap where answers part", ".2g"),
    ("task", "accuracy of the original", "accuracy, %", ".1f"),
    ("task", "accuracy of the export", "of the export", ".1f"),
)
"""Rung, measurement, column, format."""


def models(folder: Path, only: Sequence[str]) -> Iterator[tuple[str, str, Path | None]]:
    """Name in the table, what `build` is given, evaluation file; of `only`, where it names some."""
    for name in FAMILIES.names():
        if only and name not in only:
            continue
        path = write_random_checkpoint(folder / name / "model", FAMILIES[name].tiny())
        yield f"{name}, tiny", str(path), None
    for word in (word for word in SHIPPED if not only or word in only):
        yield word, word, reference_evaluation()


def report_of(model: str, recipe: str, evaluation: Path | None, out: Path) -> Report:
    """Build and check; the report stands even where a rung failed."""
    asked = [] if evaluation is None else ["--evaluation", str(evaluation)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mllm_export", "build", model, "--target", TARGET),
            *("--recipe", recipe, "-o", str(out), *asked),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    folder = out if done.returncode == 0 else out.with_name(f"{out.name}.failed")
    file = folder / "report.json"
    if not file.is_file():
        raise CheckError(f"{model} at {recipe}: {done.stderr.strip()[-500:]}")
    return from_json(Report, file.read_bytes(), file, CheckError)


def row(name: str, report: Report) -> str:
    """One line of the table."""
    found = {(r.name, m.name): m.value for r in report.rungs for m in r.measurements}
    kib = sum(s.size_bytes for s in report.sizes if s.path.startswith(("tower", "decoder"))) / 1024
    cells = [
        format(found[rung, measurement], form) if (rung, measurement) in found else ""
        for rung, measurement, _, form in FIGURES
    ]
    ran = [rung for rung in report.rungs if rung.status != "not_run"]
    failed = report.first_failure
    verdict = f"failed: {failed.name}" if failed else "passed"
    return f"| {name} | {report.recipe} | {kib:.0f} | {' | '.join(cells)} | {verdict}, {len(ran)} |"


def main(
    out: Annotated[Path | None, typer.Option("-o", help="Also write the table there.")] = None,
    recipe: Annotated[list[str], typer.Option(help="Given more than once.")] = list(RECIPES),  # noqa: B006
    only: Annotated[list[str], typer.Option(help="A family or a shipped checkpoint.")] = [],  # noqa: B006
) -> None:
    """Print the table, a row as soon as it is measured."""
    columns = [column for _, _, column, _ in FIGURES]
    head = f"| model | recipe | tower + decoder, KiB | {' | '.join(columns)} | rungs |"
    lines = [head, "|---" * (len(columns) + 4) + "|"]
    typer.echo("\n".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        for at, (name, model, evaluation) in enumerate(models(Path(folder), only)):
            for one in recipe:
                bundle = Path(folder) / f"bundle-{at}-{one}"
                lines.append(row(name, report_of(model, one, evaluation, bundle)))
                typer.echo(lines[-1])
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
