"""What each group of tensors costs when it alone is quantized, measured on the original.

The decoder is transformers' own in float32, with one group of its weights stored and read back;
the tower is the export's graph with one group of its products quantized; keys and values are
rounded where the original would cache them. The loss is the mean KL divergence from the
untouched original over answers that follow calibration pictures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mllm_export.device_tests.calibration import calibration_pixels
from mllm_export.device_tests.decoder_calibration import answer_ids
from mllm_export.device_tests.diagnosis.kv_cache import rounding
from mllm_export.device_tests.distributions import kl_divergence, log_softmax
from mllm_export.device_tests.reference import REFERENCES, Floats, Forced
from mllm_export.device_tests.samples import Question, Samples, read_calibration
from mllm_export.export.artifact import part_reader
from mllm_export.export.budget_options import (
    budget_options,
    decoder_groups,
    layout_of,
    product_groups,
)
from mllm_export.export.formats.onnx import write_tower
from mllm_export.export.parts import DECODERS
from mllm_export.export.tower_job import TowerJob
from mllm_export.export.tower_quantize import quantize_tower
from mllm_export.pixels import tiles_of
from mllm_export.progress import Progress, Step
from mllm_export.quantize.budget import KV_GROUP, Assignment, Option
from mllm_export.quantize.layout import LAYOUTS

if TYPE_CHECKING:
    from mllm_export.checkpoint import Checkpoint
    from mllm_export.export.family import Reading

SEQUENCES = 24
"""Questions whose answers are compared; each pays one row a token."""


class Sensitivity:
    """The original, its calibration sequences, and the loss of any assignment."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        reading: Reading,
        preset: str,
        calibration: Path | None,
        progress: Progress,
    ) -> None:
        """Runs the original once; everything later is held against it."""
        self._reading = reading
        self._spec = reading.spec
        self._checkpoint = checkpoint
        self._preset = preset or "avx2"
        self._progress = progress
        self._reference = REFERENCES[reading.spec.family](checkpoint)
        samples = read_calibration(calibration)
        step = max(1, len(samples.questions) // SEQUENCES)
        self._questions = samples.questions[::step][:SEQUENCES]
        self._pixels = calibration_pixels(reading.spec, calibration, progress)
        self._embeds = self._original_embeds(samples)
        self._expected = self._logs(self._embeds, {}, "f32")
        self._folder = tempfile.TemporaryDirectory(prefix="sensitivity.")
        decoder = reading.weights.part("decoder")
        self._read = part_reader(checkpoint, decoder)
        self._names = {source: name for name, source in decoder.items()}
        self._decoder = decoder_groups(
            DECODERS[reading.spec.decoder.kind].tensors(reading.spec.decoder)
        )
        self._vision = product_groups(reading.spec.vision)
        self._towers: dict[tuple[tuple[str, str], ...], dict[str, Floats]] = {}

    def options(self, context_tokens: int) -> tuple[Option, ...]:
        """Every group in every scheme, with its size and its measured loss."""
        found = budget_options(self._spec, context_tokens)
        return tuple(self._measured(at, one, len(found)) for at, one in enumerate(found))

    def loss(self, assignment: Assignment) -> float:
        """The measured loss of a whole assignment, in nats."""
        return self._loss({one.group: one.scheme for one in assignment.options})

    def close(self) -> None:
        """Remove the towers that were written."""
        self._folder.cleanup()

    def _measured(self, at: int, option: Option, total: int) -> Option:
        item = f"{option.group} as {option.scheme}"
        self._progress(Step(stage="sensitivity", item=item, done=at, total=total, unit="options"))
        return replace(option, loss=self._loss({option.group: option.scheme}))

    def _loss(self, schemes: Mapping[str, str]) -> float:
        """With these groups stored so, and all others as published."""
        vision = {group: schemes.get(group, "f32") for group in self._vision}
        changed = self._stored({g: s for g, s in schemes.items() if g in self._decoder})
        made = self._logs(self._tower_embeds(vision), changed, schemes.get(KV_GROUP, "f32"))
        pairs = zip(self._expected, made, strict=True)
        return float(np.concatenate([kl_divergence(a, b) for a, b in pairs]).mean())

    def _stored(self, schemes: Mapping[str, str]) -> dict[str, Floats]:
        """Published weights of some groups, stored and read back."""
        found: dict[str, Floats] = {}
        for group, scheme in schemes.items():
            for tensor in self._decoder[group]:
                layout = LAYOUTS[layout_of(tensor, scheme)]
                # What stays in float32 loses nothing, and may be no matrix as it is published.
                for source in tensor.sources if layout.name != "F32" else ():
                    rows = np.asarray(self._read(source), np.float32)
                    found[source] = layout.unpack(layout.pack(rows))
        return found

    def _tower_embeds(self, schemes: Mapping[str, str]) -> dict[str, Floats]:
        if set(schemes.values()) == {"f32"}:
            return self._embeds
        key = tuple(sorted(schemes.items()))
        if key not in self._towers:
            self._towers[key] = self._quantized_embeds(schemes)
        return self._towers[key]

    @cached_property
    def _float_tower(self) -> Path:
        """The tower's float graph, with the calibration pixels beside it."""
        path = Path(self._folder.name) / "float.onnx"
        np.save(path.with_name("pixels.npy"), self._pixels)
        tower, projector = (
            part_reader(self._checkpoint, self._reading.weights.part(part))
            for part in ("tower", "projector")
        )
        write_tower(path, self._spec.vision, tower, projector)
        return path

    def _quantized_embeds(self, schemes: Mapping[str, str]) -> dict[str, Floats]:
        path = self._float_tower.with_name("quantized.onnx")
        job = TowerJob(
            schemes={name: schemes[group] for group in schemes for name in self._vision[group]},
            preset=self._preset,
            pixels=path.with_name("pixels.npy"),
        )
        quantize_tower(self._float_tower, path, job)
        made = _run(path, dict(zip(self._embeds, self._pixels, strict=False)))
        path.unlink()
        return made

    def _original_embeds(self, samples: Samples) -> dict[str, Floats]:
        names = list(samples.pictures)[: len(self._pixels)]
        made = self._reference.embed(self._pixels[: len(names)])
        kept = set(names)
        self._questions = tuple(q for q in self._questions if set(q.pictures) <= kept)
        return dict(zip(names, made, strict=True))

    def _logs(
        self, embeds: Mapping[str, Floats], changed: Mapping[str, Floats], kv: str
    ) -> list[npt.NDArray[np.float64]]:
        sequences = [self._forced(question, embeds) for question in self._questions]

        def read(source: str) -> npt.NDArray[Any]:
            name = self._names[source]
            return changed[name] if name in changed else self._read(name)

        with rounding(self._reference, kv):
            logits = self._reference.logits(sequences, read if changed else None)
        return [log_softmax(one) for one in logits]

    def _forced(self, question: Question, embeds: Mapping[str, Floats]) -> Forced:
        reference = self._reference
        answer = answer_ids(reference, question.answers[0]) if question.answers else []
        follow = (*answer, reference.stop_ids[0])
        ids = (*reference.prompt_ids(question.text), *follow)
        images = tuple(embeds[name] for name in question.pictures)
        return Forced(ids=tuple(ids[:-1]), images=images, rows=len(follow) + 4)


def _run(path: Path, pixels: Mapping[str, Floats]) -> dict[str, Floats]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shapes = {port.name: tuple(port.shape) for port in session.get_inputs()}
    tiles = {key: tiles_of(one[None], shapes)[0] for key, one in pixels.items()}
    return {key: session.run(None, tile)[0] for key, tile in tiles.items()}
