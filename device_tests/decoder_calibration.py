"""Image + text sequences run through the original's own tower, projector, prompt and decoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mllm_export.checkpoint import Asked, Checkpoint
from mllm_export.device_tests.reference import REFERENCES, Floats, Forced, Reference, Walkable
from mllm_export.device_tests.samples import Samples, read_calibration
from mllm_export.errors import CalibrationError
from mllm_export.quantize.inputs import ObservedLayer

Source = tuple[Path, Asked]
"""Where a checkpoint is: its folder, and what --vision-tower said."""


def calibration_sequences(reference: Reference, samples: Samples) -> list[Forced]:
    """Each question in its whole prompt behind its picture, with the answer where one is known."""
    embeds = picture_embeds(reference, samples)
    found = []
    for question in samples.questions:
        images = tuple(embeds[name] for name in question.pictures)
        ids = [*reference.prompt_ids(question.text, len(images))]
        if question.answers:
            ids += [*answer_ids(reference, question.answers[0]), reference.stop_ids[0]]
        found.append(Forced(ids=tuple(ids), images=images, rows=1))
    return found


def answer_ids(reference: Reference, answer: str) -> list[int]:
    """An answer as the model writes it behind a prompt that ends without a blank.

    SentencePiece puts the blank before a piece of text by itself; byte-level BPE has to be given
    it, and another beginning would be no answer that the model ever gave.
    """
    two, one = reference.text_ids("a b"), reference.text_ids("a")
    brings_blank = two == [*one, *reference.text_ids("b")]
    return list(reference.text_ids(answer if brings_blank else f" {answer}"))


def picture_embeds(reference: Reference, samples: Samples) -> dict[str, Floats]:
    """Each picture through the original's preprocessing, tower and projector: f32[T, D]."""
    found = {}
    for name, picture in samples.pictures.items():
        with picture.open() as image:
            (found[name],) = reference.embed(reference.pixels(image))
    return found


def observe_decoder(
    source: Source, family: str, calibration: Path | None, diagonal_only: bool
) -> Iterator[ObservedLayer]:
    """The decoder's layers in order and its head, as calibration runs through them.

    `calibration` is a folder of pictures with questions.jsonl; None: the set of this package.
    Raises: CheckError, see `read_calibration`; CalibrationError for a family whose original
    cannot be walked through.
    """
    samples = read_calibration(calibration)
    reference = REFERENCES[family](Checkpoint(*source))
    if not isinstance(reference, Walkable):
        raise CalibrationError(
            f"the original of family '{family}' cannot be run a layer at a time; "
            "make an importance matrix with llama-imatrix and give it with --imatrix"
        )
    return reference.walk(calibration_sequences(reference, samples), diagonal_only)
