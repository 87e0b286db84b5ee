"""A checkpoint's decoder alone, in a folder as transformers and llama.cpp's converter read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.checkpoint import Checkpoint
from mllm_export.errors import CheckError
from mllm_export.export.family import Reading, read_spec
from mllm_export.export.parts import TOKENIZERS, Array
from mllm_export.shards import numpy_dtype

if TYPE_CHECKING:
    import torch

_SHARD_BYTES = 2 << 30
_ARCHITECTURES = {"llama": ("LlamaForCausalLM", "llama"), "phi": ("PhiForCausalLM", "phi")}
"""Decoder kind to what is looked for in config.json."""


def copy_language_model(checkpoint: Path, folder: Path) -> Path:
    """The decoder's tensors under their published names, with a config of their own.

    Raises: CheckError for a kind of decoder that is not known to have one.
    """
    source = Checkpoint(checkpoint)
    reading = read_spec(source)
    if not (folder / "config.json").exists():
        kind = reading.spec.decoder.kind
        if kind not in _ARCHITECTURES:
            raise CheckError(
                f"{checkpoint}: a {kind} decoder has no folder of its own, known are "
                f"{', '.join(_ARCHITECTURES)}; name one with --language-model"
            )
        folder.mkdir(exist_ok=True)
        _copy_tensors(source, reading, folder)
        for name in TOKENIZERS[reading.spec.tokenizer.kind].files:
            path = reading.tokenizer_path(source) / name
            if path.is_file():
                shutil.copyfile(path, folder / name)
        architecture, model_type = _ARCHITECTURES[kind]
        config = json.loads((checkpoint / "config.json").read_bytes())
        config |= {"architectures": [architecture], "model_type": model_type}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _copy_tensors(source: Checkpoint, reading: Reading, folder: Path) -> None:
    from safetensors.torch import save_file

    parts = reading.weights.part("decoder")
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_shards(source, parts)):
        file = f"model-{number:05d}.safetensors"
        tensors = {name: _as_torch(source.read(parts[name])) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _as_torch(values: Array) -> torch.Tensor:
    import torch

    copied = np.array(values)
    if copied.dtype == numpy_dtype("bfloat16"):
        return torch.from_numpy(copied.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


def _shards(source: Checkpoint, parts: dict[str, str]) -> Iterator[list[str]]:
    """Names in groups that fit in memory twice."""
    group: list[str] = []
    size = 0
    for name, published in parts.items():
        group.append(name)
        size += source.read(published).nbytes
        if size > _SHARD_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
