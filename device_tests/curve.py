"""Size against loss of one model: measured once, then read from a cache."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import mllm_export
from mllm_export.checkpoint import Asked, Checkpoint
from mllm_export.device_tests.samples import calibration_sha256
from mllm_export.errors import CheckError
from mllm_export.progress import Progress
from mllm_export.quantize.budget import Curve, Point, frontier, pareto
from mllm_export.records import as_plain, from_json, to_json

if TYPE_CHECKING:
    from mllm_export.export.family import Reading

POINTS = 20
"""Budgets that are tried, evenly spread from the smallest size to the least loss."""


def curve_stage(
    source: tuple[Path, Asked],
    reading: Reading,
    preset: str,
    calibration: Path | None,
    progress: Progress,
) -> Curve:
    """Measure, or read what was measured from the same files before.

    Raises: CheckError for a bad calibration set.
    """
    import torch

    from mllm_export.device_tests.sensitivity import Sensitivity

    checkpoint = Checkpoint(*source)
    path = _cache(checkpoint, reading, preset, calibration)
    if path.is_file():
        return from_json(Curve, path.read_text(encoding="utf-8"), path, CheckError)
    torch.set_num_threads(1)
    measuring = Sensitivity(checkpoint, reading, preset, calibration, progress)
    try:
        options = measuring.options()
        points = [
            Point(assignment=one, measured_loss=measuring.loss(one))
            for one in frontier(options, 0, POINTS)
        ]
    finally:
        measuring.close()
    curve = Curve(options=options, points=pareto(points))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(to_json(curve), encoding="utf-8")
    partial.replace(path)
    return curve


def _cache(checkpoint: Checkpoint, reading: Reading, preset: str, calibration: Path | None) -> Path:
    from mllm_export.device_tests.sensitivity import DECODER_OPTIONS, SEQUENCES, TOWER_OPTIONS

    inputs = {
        "sources": [
            as_plain(one) for one in checkpoint.sources(reading.uses_tower_folder, reading.folders)
        ],
        "calibration": calibration_sha256(calibration),
        "preset": preset,
        "measured": [TOWER_OPTIONS, DECODER_OPTIONS, SEQUENCES, POINTS],
        "version": mllm_export.__version__,
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mllm-export" / f"curve-{key}.json"
