"""What storing hard draws loses, by layout and by what chooses the values.

    python -m mllm_export.device_tests.benchmarks.scheme_limits -o table.md

The limits of the weights rung stand some margin below what this measures: real weights are milder
than Student's t with 3 degrees, rows of unlike size and columns that stand out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from mllm_export.device_tests.checks.weights import _block_columns
from mllm_export.export.decoder_values import LayoutStorage
from mllm_export.quantize.ggml import Floats
from mllm_export.quantize.inputs import Inputs
from mllm_export.quantize.layout import LAYOUTS
from mllm_export.quantize.method import METHODS, Layer
from mllm_export.records import record

SCHEMES = (
    "Q8_0",
    "Q6_K",
    "Q5_K",
    "Q5_1",
    "Q5_0",
    "Q4_K",
    "Q4_0",
    "Q4_1",
    "IQ4_NL",
    "IQ4_XS",
    "Q3_K",
    "Q2_K",
)
_ROWS, _COLS, _POSITIONS = 64, 1024, 3000
_SMALL = 1e-4

Draw = Callable[[np.random.Generator], Floats]


def _heavy(draw: np.random.Generator) -> Floats:
    return draw.standard_t(3, (_ROWS, _COLS)).astype(np.float32)


def _unlike_rows(draw: np.random.Generator) -> Floats:
    sizes = np.exp(draw.normal(0, 2, (_ROWS, 1)))
    return (sizes * draw.standard_normal((_ROWS, _COLS))).astype(np.float32)


def _outlying_columns(draw: np.random.Generator) -> Floats:
    sizes = np.where(draw.random(_COLS) < 0.02, 12.0, 1.0)
    return (sizes * draw.standard_normal((_ROWS, _COLS))).astype(np.float32)


WEIGHTS: dict[str, Draw] = {
    "heavy tails": _heavy,
    "rows of unlike size": _unlike_rows,
    "outlying columns": _outlying_columns,
}


def _spread(sigma: float) -> Draw:
    """Inputs of few directions whose columns differ in size, as behind a norm."""

    def inputs(draw: np.random.Generator) -> Floats:
        directions = draw.standard_normal((_COLS // 4, _COLS))
        mixed = draw.standard_normal((_POSITIONS, _COLS // 4)) @ directions / 16
        noise = 0.3 * draw.standard_normal((_POSITIONS, _COLS))
        return ((mixed + noise) * np.exp(draw.normal(0, sigma, _COLS))).astype(np.float32)

    return inputs


INPUTS: dict[str, Draw] = {"columns within 10": _spread(0.8), "columns within 1000": _spread(1.8)}

CHOICES = ("rtn", "importance", "hqq", "gptq")
"""What chooses the values: nearest, nearest in ggml's weighted search, or a method."""


@record
class Lost:
    """The worst over all draws."""

    scheme: str
    choice: str
    sqnr_db: float
    largest_error: float
    """Over the largest value of its block."""

    def __str__(self) -> str:
        return f"| {self.scheme} | {self.choice} | {self.sqnr_db:.1f} | {self.largest_error:.3f} |"


HEAD = "| scheme | values | least SQNR, dB | largest error |\n|---|---|---|---|"


def measure(scheme: str, choice: str, seed: int = 0) -> Lost:
    """Every draw of weights with every draw of inputs."""
    found = list(_losses(scheme, choice, np.random.default_rng(seed)))
    return Lost(
        scheme=scheme,
        choice=choice,
        sqnr_db=min(sqnr for sqnr, _ in found),
        largest_error=max(error for _, error in found),
    )


def _losses(scheme: str, choice: str, draw: np.random.Generator) -> Iterator[tuple[float, float]]:
    for inputs in INPUTS.values():
        values = inputs(draw)
        seen = Inputs(gram=values.T @ values, count=len(values))
        for weights in WEIGHTS.values():
            source = weights(draw)
            made = _stored(scheme, choice, source, seen)
            yield _sqnr(source, made), _largest(scheme, source, made)


def _stored(scheme: str, choice: str, source: Floats, seen: Inputs) -> Floats:
    weighted = choice in ("importance", "gptq")
    storage = LayoutStorage(layout=LAYOUTS[scheme], weighted=weighted)
    if choice in ("rtn", "importance"):
        return storage.round(source, seen.importance)
    layer = Layer(weights={"w": source}, inputs={"w": seen}, storage={"w": storage})
    after = METHODS[choice].choose(layer)
    if "w" in after.fitted:
        return after.weights["w"]
    return storage.round(after.weights["w"], seen.importance)


def _sqnr(source: Floats, made: Floats) -> float:
    noise = float(((made - source).astype(np.float64) ** 2).sum())
    return float(10 * np.log10((source.astype(np.float64) ** 2).sum() / max(noise, 1e-300)))


def _largest(scheme: str, source: Floats, made: Floats) -> float:
    width = _block_columns(scheme)
    top = np.abs(source).reshape(-1, width).max(axis=-1)
    off = np.abs(made - source).reshape(-1, width).max(axis=-1)
    return float((off / np.maximum(top, _SMALL)).max())


def main(
    out: Annotated[Path | None, typer.Option("-o", help="Also write the table there.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(help="Layouts; may be repeated.")] = None,
) -> None:
    """Print the table, a row as soon as it is measured."""
    lines = [HEAD]
    typer.echo(HEAD)
    for name in scheme or SCHEMES:
        for choice in CHOICES:
            lines.append(str(measure(name, choice)))
            typer.echo(lines[-1])
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
