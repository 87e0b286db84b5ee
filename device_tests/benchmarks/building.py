"""Writing a decoder beside llama.cpp's converter and quantizer: wall time and peak memory.

    python -m mllm_export.device_tests.benchmarks.building compare CKPT \
        --converter llama.cpp/convert_hf_to_gguf.py --work DIR -o table.md

Both sides run one after the other on the same cores, each in processes of its own. In every round
ours writes each recipe's file from the checkpoint; theirs converts once, and quantizes that file
once for each recipe, each of which counts with the conversion. The table has the medians of the
rounds so far, and of their ratios. The language model is copied first, once a run, into a folder
of its own, since the converter knows no multimodal checkpoint.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mllm_export.records import record
from mllm_export.terminal import stderr

RECIPES = ("f16", "q8_0", "q4_0", "q4_k_m")
_FILE_TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15}
"""Source: llama.h, enum llama_ftype."""

app = typer.Typer(add_completion=False, help=__doc__)


@record
class Run:
    """What one process took, or two in turn."""

    seconds: float
    cpu_seconds: float
    """Of all cores together: it hardly moves when other work shares them."""
    peak_mib: int
    """Largest resident set, with the pages of mapped files it had in hand."""


@app.command()
def decoder(checkpoint: Path, recipe: str, out: Path) -> None:
    """Ours: one decoder file, written by the code that `build` runs."""
    from mllm_export.checkpoint import Checkpoint
    from mllm_export.export.artifact import part_reader
    from mllm_export.export.artifacts.gguf import decoder_fields
    from mllm_export.export.decoder_plan import gguf_tensors, plan_decoder_tensors
    from mllm_export.export.family import read_spec
    from mllm_export.export.formats.gguf import write_decoder
    from mllm_export.quantize.recipe import load_recipe

    source = Checkpoint(checkpoint)
    reading = read_spec(source)
    chosen, spec = load_recipe(recipe), reading.spec.decoder
    parts = reading.weights.part("decoder")
    tensors = gguf_tensors(spec, plan_decoder_tensors(spec, chosen, parts))
    fields = decoder_fields(source, reading, chosen.decoder_scheme, tensors)
    write_decoder(out, fields, tensors, part_reader(source, parts))


@app.command()
def quantize(source: Path, out: Path, recipe: str) -> None:
    """Theirs, second half: llama-quantize's work, in the library that its program calls."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPES[recipe]
    params.nthread = os.cpu_count() or 1
    names = str(source).encode(), str(out).encode()
    if llama_cpp.llama_model_quantize(*names, ctypes.byref(params)):
        raise typer.Exit(1)


@app.command()
def copy(checkpoint: Path, folder: Path) -> None:
    """The language model alone, in a folder as upstream's converter takes it."""
    from mllm_export.device_tests.language_model import copy_language_model

    copy_language_model(checkpoint, folder)


@app.command()
def compare(
    checkpoint: Path,
    converter: Annotated[Path, typer.Option(help="llama.cpp's convert_hf_to_gguf.py.")],
    work: Annotated[Path, typer.Option(help="A folder with room for three times the model.")],
    out: Annotated[Path, typer.Option("-o", help="The table, in Markdown.")],
    recipe: Annotated[list[str], typer.Option(help="Given more than once.")] = list(RECIPES),  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Run both sides in turn and write the table."""
    work.mkdir(parents=True, exist_ok=True)
    # A new folder each run: one that an earlier run left may hold another checkpoint's model.
    with tempfile.TemporaryDirectory(prefix="language-model.", dir=work) as plain:
        # In a process of its own: Linux counts what this one ever held as its children's.
        subprocess.run([*_this("copy"), str(checkpoint), plain], check=True)
        rounds: list[dict[str, tuple[Run, Run]]] = []
        for _ in range(repeats):
            mine = {name: ours(checkpoint, name, work) for name in recipe}
            other = theirs(Path(plain), converter, recipe, work)
            rounds.append({name: (mine[name], other[name]) for name in recipe})
            out.write_text(_table(checkpoint.name, rounds), encoding="utf-8")
            stderr().print(f"{len(rounds)} of {repeats} rounds")
    typer.echo(out.read_text(encoding="utf-8"), nl=False)


def ours(checkpoint: Path, recipe: str, work: Path) -> Run:
    """One file from the checkpoint."""
    made = work / "ours.gguf"
    found = _timed([*_this("decoder"), str(checkpoint), recipe, str(made)])
    made.unlink()
    return found


def theirs(plain: Path, converter: Path, recipes: Sequence[str], work: Path) -> dict[str, Run]:
    """A float16 file from the folder, and each quantized file from that."""
    middle, end = work / "upstream-f16.gguf", work / "upstream.gguf"
    step = [sys.executable, str(converter), str(plain), "--outtype", "f16"]
    first = _timed([*step, "--outfile", str(middle)], converter.parent / "gguf-py")
    found = {}
    for recipe in recipes:
        found[recipe] = first
        if recipe != "f16":
            second = _timed([*_this("quantize"), str(middle), str(end), recipe])
            found[recipe] = _one_after_another(first, second)
            end.unlink()
    middle.unlink()
    return found


def _this(command: str) -> list[str]:
    return [sys.executable, "-m", __spec__.name, command]


def _timed(step: list[str], path: Path | None = None) -> Run:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    started = time.monotonic()
    process = subprocess.Popen(
        step, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(step)}: {said.decode(errors='replace')[-2000:]}")
    return Run(
        seconds=time.monotonic() - started,
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_mib=used.ru_maxrss >> 10,
    )


def _one_after_another(first: Run, second: Run) -> Run:
    return Run(
        seconds=first.seconds + second.seconds,
        cpu_seconds=first.cpu_seconds + second.cpu_seconds,
        peak_mib=max(first.peak_mib, second.peak_mib),
    )


def _table(name: str, rounds: Sequence[dict[str, tuple[Run, Run]]]) -> str:
    lines = [
        f"{name}, {os.cpu_count()} cores, {len(rounds)} runs each, medians\n",
        "| recipe | ours | CPU | peak | converter + quantizer | CPU | peak | time ratio "
        "| CPU ratio |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(recipe, [found[recipe] for found in rounds]) for recipe in rounds[0]),
    ]
    return "\n".join(lines) + "\n"


def _row(recipe: str, pairs: Sequence[tuple[Run, Run]]) -> str:
    mine, other = zip(*pairs, strict=True)
    ratio = statistics.median(a.seconds / b.seconds for a, b in pairs)
    cpu_ratio = statistics.median(a.cpu_seconds / b.cpu_seconds for a, b in pairs)
    return f"| {recipe} | {_median(mine)} | {_median(other)} | {ratio:.2f} | {cpu_ratio:.2f} |"


def _median(runs: Iterable[Run]) -> str:
    runs = tuple(runs)
    seconds = statistics.median(run.seconds for run in runs)
    cpu = statistics.median(run.cpu_seconds for run in runs)
    return f"{seconds:.1f} s | {cpu:.1f} s | {max(run.peak_mib for run in runs)} MiB"


if __name__ == "__main__":
    app()
