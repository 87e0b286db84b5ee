"""How far the original is from itself: other precisions, thread counts and resize libraries.

A limit below this floor would fail honest builds; the profile's reasons quote it. As a table:
python -m mllm_export.device_tests.noise_floor CKPT
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.device_tests.distributions import (
    cosines,
    kl_divergence,
    log_softmax,
    relative_error,
    top1_agreement,
)
from mllm_export.device_tests.reference import REFERENCES, Floats, Forced, Reference
from mllm_export.device_tests.samples import (
    Samples,
    generic_samples,
    is_reference,
    read_evaluation,
    reference_evaluation,
)
from mllm_export.records import record

if TYPE_CHECKING:
    from PIL import Image

_FOLLOWING = "There are two circles and a square on a plain background."

_ENLARGED = 1.5
"""Times the tower's input size: pictures that have to be resized, each by either library."""

Prepare = Callable[[Reference, "Image.Image"], Floats]


@record
class Floor:
    """What a variant of the original differs by."""

    worst_token_cosine: float
    relative_error: float
    mean_kl: float
    p99_kl: float
    top1_agreement: float


def noise_floor(
    reference: Reference,
    variant: Callable[[], Reference],
    samples: Samples,
    count: int,
    prepare: tuple[Prepare, Prepare] | None = None,
) -> Floor:
    """The first `count` samples through both, end to end.

    `prepare` gives the pixels of the plain run and of the variant's, where they differ.
    """
    first, second = prepare or (_own_pixels, _own_pixels)
    plain, plain_rows = _run(reference, samples, count, first)
    other, other_rows = _run(variant(), samples, count, second)
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


def all_floors(reference: Reference, samples: Samples, count: int) -> Iterator[tuple[str, Floor]]:
    """Every variant by name: what is computed with, then what pictures are resized with."""
    for precision in ("float64", "float16", "bfloat16"):
        yield precision, noise_floor(reference, partial(reference.at, precision), samples, count)
    with _threads(2):
        yield "two threads", noise_floor(reference, lambda: _one_thread(reference), samples, count)
    libraries = (_by_pillow, _by_torch)
    yield "torch's resize", noise_floor(reference, lambda: reference, samples, count, libraries)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_thread(reference: Reference) -> Reference:
    import torch

    torch.set_num_threads(1)
    return reference


def _run(
    reference: Reference, samples: Samples, count: int, pixels: Prepare
) -> tuple[Sequence[Floats], list[Floats]]:
    asked = [question for question in samples.questions if len(question.pictures) == 1][:count]
    pictures = [samples.of(question)[0] for question in asked]
    stacked = []
    for picture in pictures:
        with picture.open() as image:
            stacked.append(pixels(reference, image))
    embeds = reference.embed(np.concatenate(stacked)).astype(np.float32)
    sequences = []
    for question, rows in zip(asked, embeds, strict=True):
        answer = question.answers[0] if question.answers else _FOLLOWING
        follow = (*reference.text_ids(answer), reference.stop_ids[0])
        ids = (*reference.prompt_ids(question.text, 1), *follow)
        sequences.append(Forced(ids=ids, images=(rows,), rows=len(follow)))
    return list(embeds), reference.logits(sequences)


def _own_pixels(reference: Reference, image: Image.Image) -> Floats:
    return reference.pixels(image)


def _enlarged(reference: Reference, image: Image.Image) -> tuple[Image.Image, int]:
    """A square picture larger than the tower's input, and that input's side."""
    from PIL import Image

    size_px = reference.pixels(image).shape[-1]
    side = round(_ENLARGED * size_px)
    return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), size_px


def _by_pillow(reference: Reference, image: Image.Image) -> Floats:
    return reference.pixels(_enlarged(reference, image)[0])


def _by_torch(reference: Reference, image: Image.Image) -> Floats:
    """As transformers' fast processors do it: bicubic on bytes, antialiased."""
    import torch
    from PIL import Image

    large, size_px = _enlarged(reference, image)
    planes = torch.from_numpy(np.array(large)).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(
        planes, (size_px, size_px), mode="bicubic", antialias=True
    )
    made = small[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    return reference.pixels(Image.fromarray(made))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of one checkpoint."""
    from mllm_export.checkpoint import Checkpoint
    from mllm_export.export.family import read_spec

    parser = argparse.ArgumentParser(description="How far a checkpoint is from itself.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=16, help="questions; default: 16")
    asked = parser.parse_args(arguments)
    opened = Checkpoint(asked.checkpoint)
    reference = REFERENCES[read_spec(opened).spec.family](opened)
    samples = (
        read_evaluation(reference_evaluation())
        if is_reference(asked.checkpoint)
        else generic_samples(asked.count)
    )
    sys.stdout.write("| against float32 | 1 - worst token's cosine | relative error | mean KL |")
    sys.stdout.write(" p99 KL | top-1 |\n|---|---|---|---|---|---|\n")
    for name, floor in all_floors(reference, samples, asked.count):
        sys.stdout.write(
            f"| {name} | {1 - floor.worst_token_cosine:.1e} | {floor.relative_error:.1e} "
            f"| {floor.mean_kl:.1e} | {floor.p99_kl:.1e} | {floor.top1_agreement:.4f} |\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
