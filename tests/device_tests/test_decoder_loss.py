"""Losses of the decoder are measured on answers that the original really gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mllm_export.checkpoint import Checkpoint
from mllm_export.commands.opening import open_checkpoint, reference_evaluation
from mllm_export.device_tests import decoder_loss
from mllm_export.device_tests.decoder_calibration import answer_ids
from mllm_export.device_tests.decoder_loss import DecoderLoss
from mllm_export.device_tests.reference import REFERENCES
from mllm_export.device_tests.samples import read_evaluation
from mllm_export.export.artifact import part_reader
from mllm_export.export.family import read_spec

QUESTIONS = 6


def few_samples():
    samples = read_evaluation(reference_evaluation())
    questions = samples.questions[:QUESTIONS]
    names = {name for question in questions for name in question.pictures}
    return replace(
        samples, questions=questions, pictures={n: samples.pictures[n] for n in sorted(names)}
    )


@pytest.mark.parametrize("name", ["reference", "reference-phi"])
def test_answers_begin_as_the_model_begins_them(name, monkeypatch):
    checkpoint: Checkpoint = open_checkpoint(name, None)
    reading = read_spec(checkpoint)
    reference = REFERENCES[reading.spec.family](checkpoint)
    weights = part_reader(checkpoint, reading.weights.part("decoder"))
    asked = DecoderLoss(reference, few_samples(), QUESTIONS)
    same = asked.of(weights)
    assert (same.mean_kl, same.answers_kept, same.top1_agreement) == (0.0, 1.0, 1.0)
    assert same.answers_kept_of == QUESTIONS

    # A blank too many before SentencePiece, none before byte-level BPE: no answer of the model's.
    def wrong(original, answer):
        right = answer_ids(original, answer)
        bare = list(original.text_ids(answer))
        return bare if bare != right else list(original.text_ids(f" {answer}"))

    monkeypatch.setattr(decoder_loss, "answer_ids", wrong)
    assert DecoderLoss(reference, few_samples(), QUESTIONS).of(weights).answers_kept_of < QUESTIONS
