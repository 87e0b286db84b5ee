"""Building a model of published size from random weights: time, memory, and sizes.

    python -m mllm_export.device_tests.benchmarks.full_size cobra-3b --work DIR -o table.md

The checkpoint is written in its authors' layout first, which is not measured, and removed at the
end with the bundle. No checks are run: they would take the original's time, not the build's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer

from mllm_export.export.family import TinyModel
from mllm_export.export.published_models import PUBLISHED
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.records import record


@record
class Measured:
    """One build, in a process of its own."""

    recipe: str
    seconds: float
    peak_mib: int
    """Largest resident set of any of its processes, with the pages of mapped files in hand."""
    tower_mib: float
    decoder_mib: float


def write_apart(folder: Path, model: TinyModel) -> Path:
    """The checkpoint, written by a process of its own.

    What this process ever held would count as its children's: Linux keeps the largest resident
    set over an exec.

    Raises: RuntimeError when that process fails.
    """
    writer = get_context("spawn").Process(target=write_random_checkpoint, args=(folder, model))
    writer.start()
    writer.join()
    if writer.exitcode:
        raise RuntimeError(f"the checkpoint was not written (exit code {writer.exitcode})")
    return folder


def measure(checkpoint: Path, recipe: str, target: str, out: Path) -> Measured:
    """Build once, as the child of a fresh process: this one's own memory is not counted.

    Raises: RuntimeError with what the build said when it fails.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_measure, checkpoint, recipe, target, out).result()


def _measure(checkpoint: Path, recipe: str, target: str, out: Path) -> Measured:
    command = [sys.executable, "-m", "mllm_export", "build", str(checkpoint), "--target", target]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, "--recipe", recipe, "-o", str(out), "--no-check"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(said.decode(errors="replace")[-2000:])
    sizes = {
        part: sum(file.stat().st_size for file in out.glob(f"{part}*") if file.is_file()) / 2**20
        for part in ("tower", "decoder")
    }
    return Measured(
        recipe=recipe,
        seconds=time.monotonic() - started,
        peak_mib=used.ru_maxrss >> 10,
        tower_mib=sizes["tower"],
        decoder_mib=sizes["decoder"],
    )


def table(name: str, stored_mib: float, found: Sequence[Measured]) -> list[str]:
    """Markdown."""
    return [
        f"{name}, random weights, {stored_mib:.0f} MiB of checkpoint, {os.cpu_count()} cores",
        "",
        "| recipe | build, s | peak of one process, MiB | tower, MiB | decoder, MiB |",
        "|---|---|---|---|---|",
        *(
            f"| {one.recipe} | {one.seconds:.0f} | {one.peak_mib} | {one.tower_mib:.0f} | "
            f"{one.decoder_mib:.0f} |"
            for one in found
        ),
    ]


def main(
    model: Annotated[str, typer.Argument(help=f"One of {', '.join(PUBLISHED)}.")],
    work: Annotated[Path, typer.Option(help="A folder with room for twice the model.")],
    out: Annotated[Path | None, typer.Option("-o", help="Also write the table there.")] = None,
    recipe: Annotated[list[str], typer.Option(help="Given more than once.")] = ["int4"],  # noqa: B006
    target: Annotated[str, typer.Option(help="See 'list targets'.")] = "linux-x86_64",
) -> None:
    """Write, build, measure, remove."""
    place = work / model
    try:
        checkpoint = write_apart(place / "model", PUBLISHED[model]())
        stored = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 2**20
        found = []
        for one in recipe:
            found.append(measure(checkpoint, one, target, place / f"bundle-{one}"))
            shutil.rmtree(place / f"bundle-{one}")
        lines = table(model, stored, found)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    typer.echo("\n".join(lines))
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
