"""Writing a decoder beside llama.cpp's converter and quantizer: wall time and peak memory.

    python -m mllm_export.device_tests.benchmarks.building compare CKPT \
        --converter llama.cpp/convert_hf_to_gguf.py --work DIR -o table.md

Both sides run one after the other on the same cores, each in a process of its own, as often as
asked; the table has the medians, and their ratio. The language model is copied first, once, into
a folder of its own, since the converter knows no multimodal checkpoint.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mllm_export.records import record

RECIPES = ("f16", "q8_0", "q4_0", "q4_k_m")
_FILE_TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15}
"""Source: llama.h, enum llama_ftype."""

app = typer.Typer(add_completion=False, help=__doc__)


@record
class Run:
    """What one process took."""

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
    repeats: int = 5,
) -> None:
    """Run both sides in turn and write the table."""
    work.mkdir(parents=True, exist_ok=True)
    plain = work / "language-model"
    # In a process of its own: Linux counts what this one ever held as its children's.
    subprocess.run([*_this("copy"), str(checkpoint), str(plain)], check=True)
    lines = [
        f"{checkpoint.name}, {os.cpu_count()} cores, {repeats} runs each, medians\n",
        "| recipe | ours | CPU | peak | converter + quantizer | CPU | peak | time ratio "
        "| CPU ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in recipe:
        pairs = [
            (ours(checkpoint, name, work), theirs(plain, converter, name, work))
            for _ in range(repeats)
        ]
        lines.append(_row(name, pairs))
        typer.echo(lines[-1])
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def ours(checkpoint: Path, recipe: str, work: Path) -> Run:
    """One file from the checkpoint."""
    return _timed([[*_this("decoder"), str(checkpoint), recipe, str(work / "ours.gguf")]], work)


def theirs(plain: Path, converter: Path, recipe: str, work: Path) -> Run:
    """A float16 file from the folder, and the quantized file from that."""
    middle, end = work / "upstream-f16.gguf", work / "upstream.gguf"
    steps = [
        [sys.executable, str(converter), str(plain), "--outtype", "f16", "--outfile", str(middle)]
    ]
    if recipe != "f16":
        steps.append([*_this("quantize"), str(middle), str(end), recipe])
    return _timed(steps, work, converter.parent / "gguf-py")


def _this(command: str) -> list[str]:
    return [sys.executable, "-m", __spec__.name, command]


def _timed(steps: Sequence[list[str]], work: Path, path: Path | None = None) -> Run:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    started, peak_kib, cpu_seconds = time.monotonic(), 0, 0.0
    for step in steps:
        process = subprocess.Popen(
            step, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"{' '.join(step)}: {said.decode(errors='replace')[-2000:]}")
        peak_kib = max(peak_kib, used.ru_maxrss)
        cpu_seconds += used.ru_utime + used.ru_stime
    seconds = time.monotonic() - started
    for left in work.glob("*.gguf"):
        left.unlink()
    return Run(seconds=seconds, cpu_seconds=cpu_seconds, peak_mib=peak_kib >> 10)


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
