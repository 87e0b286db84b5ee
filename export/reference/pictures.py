"""A pool of training pictures, drawn once and kept as arrays in the work folder."""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mllm_export.export.reference.digits import load_digit_set
from mllm_export.export.reference.drawing import draw, patch_labels, square_pixels
from mllm_export.export.reference.scenes import Scene, make_scene
from mllm_export.export.reference.spec import ReferenceSpec

CHUNK = 250
# Scene seeds: training scenes count from the pool's seed times this, other splits lie beyond.
SEED_STRIDE = 10_000_000


def scene_of(seed: int, index: int, split: str = "train") -> Scene:
    """The scene with this number; splits never share a seed."""
    labels = tuple(int(label) for label in load_digit_set(split).labels)
    offset = {"train": 0, "held_out": SEED_STRIDE // 2}[split]
    return make_scene(seed * SEED_STRIDE + offset + index, split, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturePool:
    """What a tower is trained on.

    Shapes: pixels u8[N, px, px, 3]; labels i8[N, 4, grid, grid] (kind, color, place, centre).
    """

    seed: int
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int8]

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self.pixels)

    def scene(self, index: int) -> Scene:
        """What picture `index` shows."""
        return scene_of(self.seed, index)


def _fill(job: tuple[Path, int, int, int]) -> int:
    folder, seed, start, stop = job
    pixels = np.load(folder / "pixels.npy", mmap_mode="r+")
    labels = np.load(folder / "labels.npy", mmap_mode="r+")
    for index in range(start, stop):
        scene = scene_of(seed, index)
        pixels[index] = square_pixels(draw(scene), pixels.shape[1])
        made = patch_labels(scene, labels.shape[2])
        labels[index] = np.stack([made.kind, made.color, made.place, made.centre])
    return stop


def draw_pool(folder: Path, spec: ReferenceSpec, workers: int) -> Iterator[int]:
    """Draw the pool unless the folder holds it; yields how many pictures are done."""
    done = folder / "done.json"
    seed, count = spec.seed, spec.schedule.pictures
    image_px, grid = spec.vision.image_px, spec.vision.grid
    wanted = {"seed": seed, "count": count, "image_px": image_px, "grid": grid}
    if done.exists() and json.loads(done.read_text()) == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    for name, shape, kind in (
        ("pixels", (count, image_px, image_px, 3), np.uint8),
        ("labels", (count, 4, grid, grid), np.int8),
    ):
        np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape
        ).flush()
    jobs = [(folder, seed, at, min(at + CHUNK, count)) for at in range(0, count, CHUNK)]
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_fill, jobs)
    done.write_text(json.dumps(wanted))


def open_pool(folder: Path) -> PicturePool:
    """Open a drawn pool; its arrays stay on disk."""
    seed = json.loads((folder / "done.json").read_text())["seed"]
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return PicturePool(seed=seed, pixels=pixels, labels=np.load(folder / "labels.npy"))
