"""What each group of tensors costs when it alone is quantized, measured on the original.

The decoder is transformers' own in float32, with one group of its weights stored and read back;
the tower is the export's graph with one group of its products quantized. The loss is the mean KL
divergence from the untouched original over answers that follow calibration pictures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mllm_export.device_tests.calibration import calibration_pixels
from mllm_export.device_tests.decoder_calibration import answer_ids
from mllm_export.device_tests.distributions import kl_divergence, log_softmax
from mllm_export.device_tests.reference import REFERENCES, Floats, Forced
from mllm_export.device_tests.samples import Question, Samples, read_calibration
from mllm_export.export.artifact import part_reader
from mllm_export.export.formats.onnx import write_tower
from mllm_export.export.parts import DECODERS, GgufTensor
from mllm_export.export.tower_job import TowerJob
from mllm_export.export.tower_plan import tower_tensors
from mllm_export.export.tower_quantize import quantize_tower
from mllm_export.export.vision_parts import vision_groups
from mllm_export.pixels import tiles_of
from mllm_export.progress import Progress, Step
from mllm_export.quantize.budget import Assignment, Option
from mllm_export.quantize.layout import LAYOUTS, stored_bytes
from mllm_export.quantize.tower_scheme import tower_scheme

if TYPE_CHECKING:
    from mllm_export.checkpoint import Checkpoint
    from mllm_export.export.family import Reading

TOWER_OPTIONS = ("f32", "w8a8-static", "w4g32")
DECODER_OPTIONS = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K")
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
        self._groups = tuple(one.rstrip(".") for one in vision_groups(reading.spec.vision))
        self._checkpoint = checkpoint
        self._preset = preset or "avx2"
        self._progress = progress
        self._reference = REFERENCES[reading.spec.family](checkpoint)
        samples = read_calibration(calibration)
        step = max(1, len(samples.questions) // SEQUENCES)
        self._questions = samples.questions[::step][:SEQUENCES]
        self._pixels = calibration_pixels(reading.spec, calibration, progress)
        self._embeds = self._original_embeds(samples)
        self._expected = self._logs(self._embeds, None)
        self._folder = tempfile.TemporaryDirectory(prefix="sensitivity.")
        self._read = part_reader(checkpoint, reading.weights.part("decoder"))
        self._tensors = DECODERS[reading.spec.decoder.kind].tensors(reading.spec.decoder)
        self._towers: dict[tuple[tuple[str, str], ...], dict[str, Floats]] = {}

    def options(self) -> tuple[Option, ...]:
        """Every group in every scheme that can store it, with size and measured loss."""
        return (*self._tower_options(), *self._decoder_options())

    def loss(self, assignment: Assignment) -> float:
        """The measured loss of a whole assignment, in nats."""
        schemes = {one.group: one.scheme for one in assignment.options}
        tower = {group: schemes[group] for group in self._groups}
        rest = {g: s for g, s in schemes.items() if g not in tower}
        return self._loss(self._tower_embeds(tower), self._stored(rest))

    def close(self) -> None:
        """Remove the towers that were written."""
        self._folder.cleanup()

    def _tower_options(self) -> list[Option]:
        tensors = tower_tensors(self._spec.vision)
        found = []
        for group in self._groups:
            products = [t for t in tensors if t.is_product and t.name.startswith(f"{group}.")]
            for name in TOWER_OPTIONS:
                parts = [p for t in products for p in tower_scheme(name).parts(t.shape)]
                self._tell(f"{group} as {name}")
                plain = dict.fromkeys(self._groups, "f32")
                loss = self._loss(self._tower_embeds({**plain, group: name}), None)
                size = sum(part.size_bytes for part in parts)
                found.append(Option(group=group, scheme=name, size_bytes=size, loss=loss))
        return found

    def _decoder_options(self) -> list[Option]:
        groups = decoder_groups(self._tensors)
        found = []
        for group, tensors in groups.items():
            for name in DECODER_OPTIONS:
                if not all(LAYOUTS[name].fits(t.shape[-1]) for t in tensors):
                    continue
                self._tell(f"{group} as {name}")
                loss = self._loss(self._embeds, self._stored({group: name}))
                size = sum(stored_bytes(name, t.shape) for t in tensors)
                found.append(Option(group=group, scheme=name, size_bytes=size, loss=loss))
        return found

    def _stored(self, schemes: Mapping[str, str]) -> dict[str, Floats]:
        """Published weights of some groups, stored and read back."""
        groups = decoder_groups(self._tensors)
        found: dict[str, Floats] = {}
        for group, scheme in schemes.items():
            layout = LAYOUTS[scheme]
            for source in (s for tensor in groups[group] for s in tensor.sources):
                rows = np.asarray(self._read(source), np.float32)
                found[source] = layout.unpack(layout.pack(rows))
        return found

    def _tower_embeds(self, schemes: Mapping[str, str]) -> dict[str, Floats]:
        if set(schemes.values()) == {"f32"}:
            return self._embeds
        key = tuple(sorted(schemes.items()))
        if key not in self._towers:
            self._towers[key] = self._quantized_embeds(schemes, len(self._towers))
        return self._towers[key]

    def _quantized_embeds(self, schemes: Mapping[str, str], number: int) -> dict[str, Floats]:
        folder = Path(self._folder.name)
        plain, path = folder / "float.onnx", folder / f"{number}.onnx"
        spec, weights = self._spec, self._reading.weights
        if not plain.exists():
            np.save(folder / "pixels.npy", self._pixels)
            tower, projector = (
                part_reader(self._checkpoint, weights.part(part)) for part in ("tower", "projector")
            )
            write_tower(plain, spec.vision, tower, projector)
        named = {
            tensor.name: next(
                s for group, s in schemes.items() if tensor.name.startswith(f"{group}.")
            )
            for tensor in tower_tensors(spec.vision)
            if tensor.is_product
        }
        job = TowerJob(
            schemes=named,
            preset=self._preset,
            pixels=folder / "pixels.npy",
        )
        quantize_tower(plain, path, job)
        return _run(path, dict(zip(self._embeds, self._pixels, strict=False)))

    def _original_embeds(self, samples: Samples) -> dict[str, Floats]:
        names = list(samples.pictures)[: len(self._pixels)]
        made = self._reference.embed(self._pixels[: len(names)])
        kept = set(names)
        self._questions = tuple(q for q in self._questions if set(q.pictures) <= kept)
        return dict(zip(names, made, strict=True))

    def _loss(self, embeds: Mapping[str, Floats], changed: Mapping[str, Floats] | None) -> float:
        pairs = zip(self._expected, self._logs(embeds, changed), strict=True)
        rows = [kl_divergence(expected, made) for expected, made in pairs]
        return float(np.concatenate(rows).mean())

    def _logs(
        self, embeds: Mapping[str, Floats], changed: Mapping[str, Floats] | None
    ) -> list[npt.NDArray[np.float64]]:
        sequences = [self._forced(question, embeds) for question in self._questions]

        def read(name: str) -> npt.NDArray[Any]:
            return changed[name] if changed and name in changed else self._read(name)

        logits = self._reference.logits(sequences, read if changed else None)
        return [log_softmax(one) for one in logits]

    def _forced(self, question: Question, embeds: Mapping[str, Floats]) -> Forced:
        reference = self._reference
        answer = answer_ids(reference, question.answers[0]) if question.answers else []
        follow = (*answer, reference.stop_ids[0])
        ids = (*reference.prompt_ids(question.text), *follow)
        images = tuple(embeds[name] for name in question.pictures)
        return Forced(ids=tuple(ids[:-1]), images=images, rows=len(follow) + 4)

    def _tell(self, item: str) -> None:
        self._progress(Step(stage="sensitivity", item=item, done=0, total=0, unit="groups"))


def decoder_groups(tensors: Sequence[GgufTensor]) -> dict[str, list[GgufTensor]]:
    """Matrices of each layer, the embedding and the head; vectors belong to no group."""
    found: dict[str, list[GgufTensor]] = {}
    for tensor in tensors:
        if len(tensor.shape) < 2:
            continue
        words = tensor.name.split(".")
        group = ".".join(words[:2]) if words[0] == "blk" else words[0]
        found.setdefault(group, []).append(tensor)
    return found


def _run(path: Path, pixels: Mapping[str, Floats]) -> dict[str, Floats]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shapes = {port.name: tuple(port.shape) for port in session.get_inputs()}
    tiles = {key: tiles_of(one[None], shapes)[0] for key, one in pixels.items()}
    return {key: session.run(None, tile)[0] for key, tile in tiles.items()}
