"""Whether mean and standard deviation belong in the patch convolution: what that saves and costs.

    python -m mllm_export.device_tests.benchmarks.normalisation reference

    conv(W, (x / 255 - mean) / std)    ->    conv(W / (255 std), x) - sum(W mean / std)

On paper both sides are equal, for a convolution that fills nothing up; in float32 they are not.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from mllm_export.device_tests.pictures import scenes
from mllm_export.device_tests.reference import Floats
from mllm_export.export.artifact import part_reader
from mllm_export.export.family import read_spec
from mllm_export.runtimes.preprocess import _normalise, preprocess

_PICTURES = 8
Doubles = npt.NDArray[np.float64]


def patches(pixels: Doubles, patch_px: int) -> Doubles:
    """Shapes: f64[3, S, S] -> f64[patches, 3 * patch_px ** 2]."""
    views = np.lib.stride_tricks.sliding_window_view(pixels, (patch_px, patch_px), (1, 2))
    rows = views[:, ::patch_px, ::patch_px].transpose(1, 2, 0, 3, 4)
    return rows.reshape(-1, 3 * patch_px**2)


def convolved(weights: Floats, bias: Floats | None, pixels: Floats) -> Floats:
    """By torch, as the original computes it. Shapes: f32[D, 3, P, P], f32[3, S, S] -> f32[N, D]."""
    import torch

    given = None if bias is None else torch.from_numpy(bias)
    made = torch.nn.functional.conv2d(
        torch.from_numpy(pixels)[None], torch.from_numpy(weights), given, stride=weights.shape[-1]
    )
    return made[0].reshape(len(weights), -1).T.numpy()


def median_ms(work: Callable[[], object]) -> float:
    """Of 41 runs."""
    times = []
    for _ in range(41):
        start = perf_counter()
        work()
        times.append(1000 * (perf_counter() - start))
    return float(np.median(times))


def main(
    checkpoint: Annotated[
        str, typer.Argument(help="A CLIP tower's, or 'reference'.")
    ] = "reference",
) -> None:
    """Print times of preprocessing, and the errors of both convolutions against float64."""
    from mllm_export.commands.opening import open_checkpoint

    source = open_checkpoint(checkpoint, None)
    reading = read_spec(source)
    image = reading.spec.vision.image_inputs[0].image
    read = part_reader(source, reading.weights.part("tower"))
    weights = np.asarray(read("vision_model.embeddings.patch_embedding.weight"), np.float32)
    mean, std = np.array(image.mean), np.array(image.std)
    wide = weights.astype(np.float64)
    folded = (wide / (255 * std)[:, None, None]).astype(np.float32)
    bias = -(wide.sum((2, 3)) @ (mean / std)).astype(np.float32)
    lost: list[list[float]] = []
    for picture in scenes(_PICTURES):
        with picture.open() as opened:
            shown = opened.convert("RGB").resize((image.size_px, image.size_px))
        raw = np.asarray(shown).transpose(2, 0, 1)
        exact = (raw / 255 - mean[:, None, None]) / std[:, None, None]
        right = patches(exact, weights.shape[-1]) @ wide.reshape(len(wide), -1).T
        plain = convolved(weights, None, _normalise(shown, image)[0])
        other = convolved(folded, bias, raw.astype(np.float32))
        size = np.linalg.norm(right)
        lost.append([*(float(np.linalg.norm(one - right) / size) for one in (plain, other)),
                     float((plain == other).mean())])  # fmt: skip
    as_published, as_folded, same = np.median(lost, axis=0)
    typer.echo(f"relative error as published {as_published:.2e}, folded {as_folded:.2e}")
    typer.echo(f"outputs with the same bits: {100 * same:.1f} %")
    table = median_ms(lambda: _normalise(shown, image))
    cast = median_ms(lambda: np.ascontiguousarray(np.asarray(shown).transpose(2, 0, 1), np.float32))
    whole = median_ms(lambda: preprocess(shown.resize((640, 480)), image))
    typer.echo(f"ms: preprocessing {whole:.2f}, of it normalising {table:.2f}, a cast {cast:.2f}")


if __name__ == "__main__":
    typer.run(main)
