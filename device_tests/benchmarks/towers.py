"""Ways to quantize a tower: what its embeddings lose step by step, and what time it takes.

    python -m mllm_export.device_tests.benchmarks.towers parity reference -o table.md
    python -m mllm_export.device_tests.benchmarks.towers latency CKPT -o table.md

`parity` holds every graph against the original in float32 on held-out pictures; `latency` runs
float32 and INT8 in turn, in one process, on the same input.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mllm_export.device_tests.calibration import calibration_pixels
from mllm_export.device_tests.distributions import cosines, relative_error
from mllm_export.device_tests.latency import machine
from mllm_export.device_tests.reference import REFERENCES, Floats
from mllm_export.device_tests.samples import read_evaluation
from mllm_export.export.artifact import part_reader
from mllm_export.export.budget_options import product_groups
from mllm_export.export.family import Reading, read_spec
from mllm_export.export.formats.onnx import write_tower
from mllm_export.export.tower_job import TowerJob
from mllm_export.export.tower_quantize import quantize_tower
from mllm_export.pixels import tiles_of
from mllm_export.progress import silent
from mllm_export.quantize.tower_recipe import TowerRanges
from mllm_export.records import record

if TYPE_CHECKING:
    from mllm_export.checkpoint import Checkpoint

STATIC = "w8a8-static"
PICTURES = 48
"""Held-out pictures that `parity` measures on, of the evaluation set."""

app = typer.Typer(add_completion=False, help=__doc__)


@record
class Way:
    """One row of the table."""

    text: str
    scheme: str
    ranges: TowerRanges = "minmax"
    smoothing: bool = False


RANGES: tuple[TowerRanges, ...] = ("minmax", "percentile", "entropy")
WAYS = (
    Way(text="float32, ONNX Runtime's operators", scheme="f32"),
    Way(text="float16 weights", scheme="f16"),
    Way(text="INT8 dynamic", scheme="w8a8"),
    *(
        Way(text=f"INT8 static, {ranges}{more}", scheme=STATIC, ranges=ranges, smoothing=smoothing)
        for ranges in RANGES
        for more, smoothing in (("", False), (", smoothed", True))
    ),
    *(Way(text=f"INT4 {name}", scheme=name) for name in ("w4g32", "w4g32-asym", "w4g128")),
)

HEAD = (
    "| tower | worst-token cosine | mean-token cosine | relative error | moved by fusing "
    "| bytes | ms |\n|---|---|---|---|---|---|---|"
)


class Bench:
    """A checkpoint's tower in float32, and its quantized twins."""

    def __init__(self, checkpoint: Checkpoint, preset: str, folder: Path) -> None:
        """Writes the float tower and the calibration pixels."""
        self.reading: Reading = read_spec(checkpoint)
        self._preset = preset
        self._folder = folder
        self.plain = folder / "tower.float.onnx"
        self._pixels = folder / "pixels.npy"
        weights = self.reading.weights
        tower, projector = (
            part_reader(checkpoint, weights.part(part)) for part in ("tower", "projector")
        )
        write_tower(self.plain, self.reading.spec.vision, tower, projector)
        np.save(self._pixels, calibration_pixels(self.reading.spec, None, silent))

    def quantized(self, way: Way, number: int) -> tuple[Path, float]:
        """The file, and how far the fused graph stands from the float one, piece by piece."""
        path = self._folder / f"{number}.onnx"
        groups = product_groups(self.reading.spec.vision)
        job = TowerJob(
            schemes={name: way.scheme for names in groups.values() for name in names},
            preset=self._preset,
            pixels=self._pixels,
        )
        steps = quantize_tower(
            self.plain, path, replace(job, ranges=way.ranges, smoothing=way.smoothing)
        )
        return path, steps.steps[0].relative_error


def opened(path: Path, threads: int) -> Any:
    """A session of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def embedded(session: Any, pixels: Floats) -> Floats:
    """Pictures f32[N, C, S, S] to embeddings f32[N, T, D]."""
    shapes = {port.name: tuple(port.shape) for port in session.get_inputs()}
    return np.stack([session.run(None, tile)[0] for tile in tiles_of(pixels, shapes)])


def in_turn(sessions: Sequence[Any], pixels: Floats, repeats: int) -> list[list[float]]:
    """Milliseconds of each session, one run of each after another; the first of each is not kept.

    Shapes: f32[1, C, S, S].
    """
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(repeats + 1):
        for session, found in zip(sessions, times, strict=True):
            start = perf_counter()
            embedded(session, pixels)
            found.append(1000 * (perf_counter() - start))
    return [found[1:] for found in times]


def spread(times: Sequence[float]) -> str:
    """Median, and the middle half's width."""
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
    return f"{middle:.3g} +- {high - low:.2g}"


@app.command()
def parity(
    checkpoint: Annotated[str, typer.Argument(help="A trained checkpoint, or 'reference'.")],
    out: Annotated[Path | None, typer.Option("-o", help="Also write the table there.")] = None,
    preset: str = "avx512_vnni",
) -> None:
    """Every way on held-out pictures, against the original."""
    from mllm_export.commands.opening import open_checkpoint, reference_evaluation

    source = open_checkpoint(checkpoint, None)
    reference = REFERENCES[read_spec(source).spec.family](source)
    pictures = list(read_evaluation(reference_evaluation()).pictures.values())[:PICTURES]
    pixels = []
    for picture in pictures:
        with picture.open() as image:
            pixels.append(reference.pixels(image))
    expected = np.concatenate([reference.embed(one) for one in pixels])
    lines = [HEAD]
    typer.echo(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(source, preset, Path(folder))
        rows = [("float32, as it is traced", bench.plain, 0.0)]
        rows += [(way.text, *bench.quantized(way, at)) for at, way in enumerate(WAYS)]
        for text, path, moved in rows:
            session = opened(path, 1)
            made = embedded(session, np.concatenate(pixels))
            tokens = cosines(expected.reshape(-1, made.shape[-1]), made.reshape(-1, made.shape[-1]))
            (times,) = in_turn([session], pixels[0], 9)
            lines.append(
                f"| {text} | {tokens.min():.6f} | {tokens.mean():.6f} "
                f"| {relative_error(expected, made):.2e} | {moved:.1e} "
                f"| {path.stat().st_size} | {spread(times)} |"
            )
            typer.echo(lines[-1])
    _keep(out, lines)


@app.command()
def latency(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint; its weights may be random.")],
    out: Annotated[Path | None, typer.Option("-o", help="Also write the table there.")] = None,
    preset: str = "avx512_vnni",
    repeats: int = 7,
    threads: int = 0,
) -> None:
    """Float32 as traced, float32 with fused operators, INT8 static: in turn, in one process."""
    from mllm_export.commands.opening import open_checkpoint

    chosen = (WAYS[0], next(way for way in WAYS if way.scheme == STATIC))
    lines = [
        f"{machine()}, {threads or 'all'} threads, {repeats} runs each in turn, "
        "medians and middle halves\n",
        "| tower | ms | of float32 |\n|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(open_checkpoint(checkpoint, None), preset, Path(folder))
        paths = [bench.plain, *(bench.quantized(way, at)[0] for at, way in enumerate(chosen))]
        sessions = [opened(path, threads) for path in paths]
        pixels = np.load(bench.plain.with_name("pixels.npy"), mmap_mode="r")[:1]
        times = in_turn(sessions, np.asarray(pixels), repeats)
    base = np.array(times[0])
    for text, found in zip(
        ("float32, as it is traced", *(w.text for w in chosen)), times, strict=True
    ):
        ratio = float(np.median(np.array(found) / base))
        lines.append(f"| {text} | {spread(found)} | {ratio:.2f} |")
    typer.echo("\n".join(lines))
    _keep(out, lines)


def _keep(out: Path | None, lines: Sequence[str]) -> None:
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
