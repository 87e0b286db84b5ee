"""Recipes x methods on a trained checkpoint: what the decoder loses, and what it weighs.

    python -m mllm_export.device_tests.benchmarks.quantization reference -o table.md

Every row is the whole decoder as its GGUF file holds it, dequantized by gguf-py and run through
the original's own code in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import typer

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.checks.weights import loss_of
from mllm_export.device_tests.decoder_calibration import calibration_sequences
from mllm_export.device_tests.decoder_loss import DecoderLoss, Loss
from mllm_export.device_tests.folded import read_decoder
from mllm_export.device_tests.reference import REFERENCES, Forced, Reference, Walkable
from mllm_export.device_tests.samples import Samples, read_calibration, read_evaluation
from mllm_export.device_tests.stored import FLOATS, as_published
from mllm_export.errors import CalibrationError
from mllm_export.export.artifact import part_reader
from mllm_export.export.artifacts.gguf import decoder_fields
from mllm_export.export.decoder_calibrated import FOLDS, write_folds
from mllm_export.export.decoder_plan import gguf_tensors, plan_decoder_tensors
from mllm_export.export.decoder_values import ChosenValues
from mllm_export.export.family import Reading, read_spec
from mllm_export.export.formats.gguf import write_decoder
from mllm_export.export.parts import DECODERS, Foldable
from mllm_export.quantize.inputs import ObservedLayer
from mllm_export.quantize.method import METHODS
from mllm_export.quantize.recipe import load_recipe
from mllm_export.records import record
from mllm_export.runtimes.decoder.llama_cpp import ENGINE

PROMPT_TOKENS = 96
"""As many are then decoded one by one."""

RECIPES = ("q4_0", "q4_k_m", "q4_k_embed")
CHOICES = (
    ("rtn, no importance", (), ""),
    ("rtn, text importance", (), "text"),
    ("rtn, image + text importance", (), "image"),
    ("hqq", ("hqq",), ""),
    ("awq", ("awq",), "image"),
    ("gptq", ("gptq",), "image"),
    ("awq, then gptq", ("awq", "gptq"), "image"),
)
"""What is said of the row, the methods in order, and the sequences they are calibrated on."""


@record
class Row:
    """One line of the table."""

    recipe: str
    choice: str
    loss: Loss
    least_sqnr_db: float
    """Of the quantized tensor that lost most."""
    size_bytes: int
    token_ms: tuple[float, float]
    """Median time of a decoded token on one thread, and the middle half's width."""

    def __str__(self) -> str:
        low, high = self.loss.interval
        return (
            f"| {self.recipe} | {self.choice} | {self.loss.mean_kl:.5f} | {self.loss.p99_kl:.4f} "
            f"| {self.loss.top1_agreement:.4f} | {self.loss.perplexity_ratio:.4f} "
            f"| {self.least_sqnr_db:.1f} | {100 * self.loss.answers_kept:.1f} "
            f"({100 * low:.1f} to {100 * high:.1f}) | {self.size_bytes} "
            f"| {self.token_ms[0]:.2f} +- {self.token_ms[1]:.2f} |"
        )


HEAD = (
    "| recipe | values | mean KL | p99 KL | top-1 | perplexity ratio | least SQNR, dB "
    "| answers kept, % | bytes | decode, ms a token |\n|---|---|---|---|---|---|---|---|---|---|"
)


class Bench:
    """A checkpoint, its original, and the questions that both are measured on."""

    def __init__(self, checkpoint: Checkpoint, samples: Samples, calibration: Samples) -> None:
        """The original runs now."""
        self.checkpoint = checkpoint
        self.reading: Reading = read_spec(checkpoint)
        self.reference: Reference = REFERENCES[self.reading.spec.family](checkpoint)
        self.loss = DecoderLoss(self.reference, samples, 160)
        pictured = calibration_sequences(self.reference, calibration)
        self.sequences = {"image": pictured, "text": [_without_images(s) for s in pictured]}

    def row(self, recipe: str, choice: str, methods: tuple[str, ...], on: str) -> Row:
        """Write the decoder that way and measure it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "decoder.gguf"
            self._write(path, recipe, methods, on)
            stored, _ = read_decoder(path)
            originals = self.reference.decoder_originals()
            losses = [
                loss_of(stored[name], originals[name]).sqnr_db
                for name in stored
                if stored[name].scheme not in FLOATS
            ]
            return Row(
                recipe=recipe,
                choice=choice,
                loss=self.loss.of(as_published(stored, originals)),
                least_sqnr_db=min(one for one in losses if one is not None),
                size_bytes=path.stat().st_size,
                token_ms=self._token_ms(path),
            )

    def _token_ms(self, path: Path) -> tuple[float, float]:
        decoder = ENGINE.open(path, self.reading.spec, 512, 1)
        ids = list(range(10, 10 + PROMPT_TOKENS))
        decoder.evaluate([ids], all_logits=False)
        times = []
        for token in ids:
            start = perf_counter()
            decoder.extend(token)
            times.append(1000 * (perf_counter() - start))
        decoder.close()
        low, middle, high = np.quantile(times[len(times) // 4 :], (0.25, 0.5, 0.75))
        return float(middle), float(high - low)

    def _write(self, path: Path, name: str, methods: tuple[str, ...], on: str) -> None:
        decoder = self.reading.spec.decoder
        recipe, sources = load_recipe(name), self.reading.weights.part("decoder")
        plan = plan_decoder_tensors(decoder, recipe, sources, imatrix=bool(on))
        tensors = gguf_tensors(decoder, plan)
        chosen = [METHODS[method] for method in methods]
        grams = any(method.needs_inputs for method in chosen)
        kind = DECODERS[decoder.kind]
        values = ChosenValues(
            tensors,
            part_reader(self.checkpoint, sources),
            chosen,
            self._walk(on, not grams) if on else None,
            partial(kind.folds, decoder) if isinstance(kind, Foldable) else lambda _layer: (),
        )
        fields = decoder_fields(self.checkpoint, self.reading, recipe.decoder_scheme, tensors)
        write_decoder(path, fields, tensors, values)
        if values.folded:
            write_folds(path.with_name(FOLDS), values.folded)

    def _walk(self, on: str, diagonal_only: bool) -> Iterator[ObservedLayer]:
        if not isinstance(self.reference, Walkable):
            raise CalibrationError("this family's original cannot be run a layer at a time")
        return self.reference.walk(self.sequences[on], diagonal_only)


def _without_images(one: Forced) -> Forced:
    return Forced(ids=tuple(i for i in one.ids if i >= 0), images=(), rows=1)


def main(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or 'reference'.")] = "reference",
    out: Annotated[Path | None, typer.Option("-o", help="Also write the table there.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Recipes; may be repeated.")] = None,
) -> None:
    """Print the table, a row as soon as it is measured."""
    from mllm_export.commands.opening import open_checkpoint, reference_evaluation

    bench = Bench(
        open_checkpoint(checkpoint, None),
        read_evaluation(reference_evaluation()),
        read_calibration(None),
    )
    lines = [HEAD]
    typer.echo(HEAD)
    for name in recipe or RECIPES:
        for choice in CHOICES:
            lines.append(str(bench.row(name, *choice)))
            typer.echo(lines[-1])
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
