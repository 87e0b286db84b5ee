"""Faults planted into a bundle's files or its description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import onnx
import torch
from onnx import numpy_helper

from mllm_export.bundle import Bundle
from mllm_export.spec import ModelSpec


def respecified(bundle: Bundle, change: Callable[[ModelSpec], ModelSpec]) -> Bundle:
    """The same files under another model description."""
    return Bundle(bundle.folder, replace(bundle.manifest, model=change(bundle.manifest.model)))


def redrawn(path: Path, prefix: str, seed: int = 3) -> None:
    """Weights under a prefix put in another order: same mean and spread, another model's."""
    model = onnx.load(path)
    generator = torch.Generator().manual_seed(seed)
    for one in model.graph.initializer:
        if one.name.startswith(prefix):
            values = torch.from_numpy(numpy_helper.to_array(one).copy())
            order = torch.randperm(values.numel(), generator=generator)
            other = values.flatten()[order].reshape(values.shape).numpy()
            one.CopyFrom(numpy_helper.from_array(other, one.name))
    onnx.save(model, path)


def swapped_tensors(path: Path, one: str, other: str) -> None:
    """Two tensors of the decoder's file exchanged in place."""
    reader = gguf.GGUFReader(path, "r+")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kept = tensors[one].data.copy()
    tensors[one].data[:] = tensors[other].data
    tensors[other].data[:] = kept
    reader.data.flush()


def rewritten_key(path: Path, key: str, value: float) -> None:
    """A number in the decoder's metadata changed in place."""
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields[key]
    field.parts[field.data[0]][0] = value
    reader.data.flush()
