"""How far the original is from itself: other precisions, thread counts and resize libraries.

A limit below this floor would fail honest builds; profiles give limits of float rungs in multiples
of the records in device_tests/floors, which this writes:
python -m mllm_export.device_tests.noise_floor export/reference/data/checkpoint --write reference
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

import numpy as np

from mllm_export.device_tests.distributions import (
    cosines,
    kl_divergence,
    log_softmax,
    relative_error,
    top1_agreement,
)
from mllm_export.device_tests.floor import RANDOM, Floor, FloorMeasure, FloorRecord
from mllm_export.device_tests.reference import REFERENCES, Floats, Forced, Reference
from mllm_export.device_tests.samples import (
    Samples,
    generic_samples,
    is_reference,
    read_evaluation,
    reference_evaluation,
)

if TYPE_CHECKING:
    from PIL import Image

_FOLLOWING = "There are two circles and a square on a plain background."

_ENLARGED = 1.5
"""Times the tower's input size: pictures that have to be resized, each by either library."""

Prepare = Callable[[Reference, "Image.Image"], Floats]


def noise_floor(
    name: str,
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
        variant=name,
        worst_token_cosine_lost=_lost(cosine.min()),
        relative_error=max(relative_error(a, b) for a, b in zip(plain, other, strict=True)),
        mean_kl=float(kl.mean()),
        p99_kl=float(np.quantile(kl, 0.99)),
        top1_lost=_lost(same.mean()),
    )


def _lost(agreement: float) -> float:
    return max(0.0, 1 - float(agreement))


def all_floors(reference: Reference, samples: Samples, count: int) -> Iterator[Floor]:
    """Every variant: what is computed with, then what pictures are resized with."""
    for name in ("float64", "float16", "bfloat16"):
        yield noise_floor(name, reference, partial(reference.at, name), samples, count)
    with _threads(2):
        yield noise_floor("two threads", reference, lambda: _one_thread(reference), samples, count)
    libraries = (_by_pillow, _by_torch)
    yield noise_floor("torch's resize", reference, lambda: reference, samples, count, libraries)


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
    """Print the table of one checkpoint, and write its record where asked."""
    parser = argparse.ArgumentParser(description="How far a checkpoint is from itself.")
    parser.add_argument(
        "checkpoint", help=f"a folder, or '{RANDOM}' for a tiny twin without training"
    )
    parser.add_argument("--count", type=int, default=16, help="questions; default: 16")
    parser.add_argument("--write", metavar="NAME", help="also as a record for the profiles")
    asked = parser.parse_args(arguments)
    record = measured(asked.checkpoint, asked.count, asked.write or "")
    sys.stdout.write(_table(record.floors))
    if asked.write:
        path = Path(__file__).with_name("floors") / f"{asked.write}.toml"
        path.write_text(as_toml(record), encoding="utf-8")
    return 0


def measured(checkpoint: str, count: int, name: str) -> FloorRecord:
    """Every variant of a checkpoint, or of a random twin, on `count` questions."""
    with TemporaryDirectory() as folder:
        reference, samples = _opened(checkpoint, Path(folder), count)
        rows = sum(len(one) for one in _run(reference, samples, count, _own_pixels)[1])
        floors = tuple(all_floors(reference, samples, count))
    return FloorRecord(
        checkpoint=name,
        questions=count,
        rows=rows,
        made_with=f"torch {version('torch')}, {platform.machine()}",
        floors=floors,
    )


def _opened(name: str, folder: Path, count: int) -> tuple[Reference, Samples]:
    from mllm_export.checkpoint import Checkpoint
    from mllm_export.export.family import FAMILIES, read_spec

    if name == RANDOM:
        from mllm_export.export.random_checkpoint import write_random_checkpoint

        path = write_random_checkpoint(folder / "model", FAMILIES["mobilevlm"].tiny())
    else:
        path = Path(name)
    opened = Checkpoint(path)
    reference = REFERENCES[read_spec(opened).spec.family](opened)
    shipped = is_reference(path)
    return reference, read_evaluation(reference_evaluation()) if shipped else generic_samples(count)


def _table(floors: Sequence[Floor]) -> str:
    heads = "against float32", *(one.replace("_", " ") for one in get_args(FloorMeasure))
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in floors:
        values = (f"{one.of(measure):.1e}" for measure in get_args(FloorMeasure))
        lines.append(f"| {one.variant} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def as_toml(record: FloorRecord) -> str:
    """Two digits: a record says how large noise is, not which."""
    lines = [
        f'checkpoint = "{record.checkpoint}"',
        f"questions = {record.questions}",
        f"rows = {record.rows}",
        f'made_with = "{record.made_with}"',
    ]
    for one in record.floors:
        lines += ["", "[[floors]]", f'variant = "{one.variant}"']
        lines += [f"{measure} = {one.of(measure):.1e}" for measure in get_args(FloorMeasure)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
