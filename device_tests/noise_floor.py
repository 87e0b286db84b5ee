"""How far the original is from itself: other precisions, other thread counts.

A limit below this floor would fail honest builds; the profile's reasons quote it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mllm_export.device_tests.distributions import (
    cosines,
    kl_divergence,
    log_softmax,
    relative_error,
    top1_agreement,
)
from mllm_export.device_tests.reference import Floats, Forced, Reference
from mllm_export.device_tests.samples import Samples
from mllm_export.records import record

_FOLLOWING = "There are two circles and a square on a plain background."


@record
class Floor:
    """What a variant of the original differs by."""

    worst_token_cosine: float
    relative_error: float
    mean_kl: float
    p99_kl: float
    top1_agreement: float


def noise_floor(
    reference: Reference, variant: Callable[[], Reference], samples: Samples, count: int
) -> Floor:
    """The first `count` samples through both, end to end."""
    plain, plain_rows = _run(reference, samples, count)
    other, other_rows = _run(variant(), samples, count)
    cosine = np.concatenate([cosines(a, b) for a, b in zip(plain, other, strict=True)])
    pairs = list(zip(plain_rows, other_rows, strict=True))
    kl = np.concatenate([kl_divergence(log_softmax(a), log_softmax(b)) for a, b in pairs])
    same = np.concatenate([top1_agreement(a, b) for a, b in pairs])
    return Floor(
        worst_token_cosine=float(cosine.min()),
        relative_error=max(relative_error(a, b) for a, b in zip(plain, other, strict=True)),
        mean_kl=float(kl.mean()),
        p99_kl=float(np.quantile(kl, 0.99)),
        top1_agreement=float(same.mean()),
    )


def _run(
    reference: Reference, samples: Samples, count: int
) -> tuple[Sequence[Floats], list[Floats]]:
    asked = [question for question in samples.questions if len(question.pictures) == 1][:count]
    pictures = [samples.of(question)[0] for question in asked]
    stacked = []
    for picture in pictures:
        with picture.open() as image:
            stacked.append(reference.pixels(image))
    embeds = reference.embed(np.concatenate(stacked))
    sequences = []
    for question, rows in zip(asked, embeds, strict=True):
        answer = question.answers[0] if question.answers else _FOLLOWING
        follow = (*reference.text_ids(answer), reference.stop_ids[0])
        ids = (*reference.prompt_ids(question.text, 1), *follow)
        sequences.append(Forced(ids=ids, images=(rows,), rows=len(follow)))
    return list(embeds), reference.logits(sequences)
