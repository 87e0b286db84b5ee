"""Bundles of small encoders alone, written in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_embedders as tiny

import mllm_export.export.build_embedder as job
from mllm_export.checkpoint import Checkpoint
from mllm_export.export.embedder_parts import embedder_for
from mllm_export.export.target import load_target
from mllm_export.quantize.recipe import load_recipe

LAYOUTS = {
    "clip": tiny.clip,
    "siglip": tiny.siglip,
    "vitamin, timm": tiny.vitamin_timm,
    "vitamin, timm, positions resized": lambda folder: tiny.vitamin_timm(folder, 4),
    "vitamin, open_clip": tiny.vitamin_open_clip,
}
TARGET = load_target("linux-x86_64")
MAC = load_target("macos-arm64")
HERE = (
    "mllm_export.export.artifacts.onnx.run_in_child",
    "mllm_export.export.artifacts.coreml.run_in_child",
)


def read(folder: Path):
    checkpoint = Checkpoint(folder)
    entry = embedder_for(checkpoint.config)
    assert entry is not None
    return checkpoint, entry.read(checkpoint)


def planned(checkpoint, reading, target=TARGET, recipe="f16"):
    dropped = reading.weights.resolve(checkpoint.shapes(False))
    return job.plan_embedder(reading, target, load_recipe(recipe), dropped)


def write(plan, reading, checkpoint, out, finish=lambda *_: "unchecked"):
    """The bundle, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in HERE:
            patch.setattr(name, lambda _, f, *a, progress: f(*a, progress))
        return job.build_embedder(plan, reading, checkpoint, out, finish)


def status(report):
    return {rung.name: rung.status for rung in report.rungs}
