"""Recipes x methods on a trained checkpoint: what the decoder loses, and what it weighs.

    python -m mllm_export.device_tests.benchmarks.quantization reference -o table.md
    python -m mllm_export.device_tests.benchmarks.quantization reference --drawn 40

Every row is the whole decoder as its GGUF file holds it, dequantized by gguf-py and run through
the original's own code in float32; rows of a KV type round keys and values besides. Recipes were
chosen on the evaluation pictures: `--drawn` measures on pictures that nothing was chosen by.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
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
from mllm_export.device_tests.diagnosis.kv_cache import rounding
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
from mllm_export.export.reference.question_sets import QUESTIONS, QuestionSet, write_set
from mllm_export.export.reference.spec import ReferenceSpec
from mllm_export.kv_cache import KvType
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

KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0", "q4_0")

_DRAWN_FROM = 2000
"""The first scene that is drawn: evaluation and demo have scenes of lower numbers."""


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

    def row(
        self, recipe: str, choice: str, methods: tuple[str, ...], on: str, kv: KvType = "f32"
    ) -> Row:
        """Write the decoder that way and measure it; `kv` is how keys and values are kept."""
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
            with rounding(self.reference, kv):
                loss = self.loss.of(as_published(stored, originals))
            return Row(
                recipe=recipe,
                choice=choice,
                loss=loss,
                least_sqnr_db=min((one for one in losses if one is not None), default=999.0),
                size_bytes=path.stat().st_size,
                token_ms=self._token_ms(path, "f16" if kv == "f32" else kv),
            )

    def _token_ms(self, path: Path, kv: KvType) -> tuple[float, float]:
        decoder = ENGINE.open(path, self.reading.spec, 512, 1, kv)
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


def rows(bench: Bench, recipes: Sequence[str]) -> Iterator[Row]:
    """Recipes x methods, then the types of the KV cache over float16 weights."""
    for name in recipes:
        for choice in CHOICES:
            yield bench.row(name, *choice)
    has_state = bench.reading.spec.decoder.state is not None
    for kind in () if has_state else KV_TYPES:
        yield bench.row("f16", f"KV cache {kind}", (), "", kind)


def drawn_samples(folder: Path, pictures: int) -> Samples:
    """Held-out pictures of the shipped checkpoints' task that are in no set, drawn now."""
    chosen = QuestionSet(
        name="drawn", split="held_out", first=_DRAWN_FROM, pictures=pictures, questions=4
    )
    write_set(folder, chosen, ReferenceSpec().seed)
    return read_evaluation(folder / chosen.name / QUESTIONS)


def main(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or 'reference'.")] = "reference",
    out: Annotated[Path | None, typer.Option("-o", help="Also write the table there.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Recipes; may be repeated.")] = None,
    drawn: Annotated[int, typer.Option(help="Measure on so many pictures drawn anew.")] = 0,
) -> None:
    """Print the table, a row as soon as it is measured."""
    from mllm_export.commands.opening import open_checkpoint, reference_evaluation

    with tempfile.TemporaryDirectory() as folder:
        if drawn:
            samples = drawn_samples(Path(folder), drawn)
        else:
            samples = read_evaluation(reference_evaluation())
        bench = Bench(open_checkpoint(checkpoint, None), samples, read_calibration(None))
    lines = [HEAD]
    typer.echo(HEAD)
    for row in rows(bench, recipe or RECIPES):
        lines.append(str(row))
        typer.echo(lines[-1])
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
