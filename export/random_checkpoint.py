"""Checkpoint folders with random weights in a family's published layout, for tests and benches.

Weights are drawn at a scale where a wrong epsilon, activation or permutation moves the output
well above any limit: an initialisation of 0.02 would hide such faults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mllm_export.checkpoint import TOWER_PREFIX, Checkpoint
from mllm_export.config import Config
from mllm_export.export.family import TinyModel, read_spec
from mllm_export.export.parts import ENCODERS, TOKENIZERS
from mllm_export.export.vision_parts import encoder_prefix
from mllm_export.weights import Shape

Format = Literal["bin", "safetensors"]
_INDEX = {"bin": "pytorch_model.bin.index.json", "safetensors": "model.safetensors.index.json"}
_SINGLE = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}


def write_random_checkpoint(
    folder: Path,
    model: TinyModel,
    *,
    seed: int = 0,
    weights: Format = "bin",
    shards: int = 1,
    dtype: str = "bfloat16",
) -> Path:
    """Write `folder` (the checkpoint) and, beside it, the folders of its parts.

    Returns the checkpoint's folder. The same arguments give the same tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = write_configs(folder, model)
    shapes = published_shapes(folder)
    for number, (prefix, part) in enumerate(parts.items(), 1):
        own = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
        if own:
            _write_weights(part, own, seed + number, weights, 1, "float32")
    inside = {n: s for n, s in shapes.items() if not n.startswith(tuple(parts))}
    if model.file:
        _write_nested(folder / model.file, model, inside, seed, dtype)
    else:
        _write_weights(folder, inside, seed, weights, shards, dtype)
    return folder


def write_configs(folder: Path, model: TinyModel) -> dict[str, Path]:
    """Every folder with all but its weights; returns those of parts by their tensors' prefix."""
    parts: dict[str, Path] = {}
    if model.tower_config:
        parts[TOWER_PREFIX] = folder.parent / model.tower_name if model.tower_name else folder
        parts[TOWER_PREFIX].mkdir(exist_ok=True)
        _write_json(parts[TOWER_PREFIX] / "config.json", model.tower_config)
    if model.preprocessor:
        place = parts.get(TOWER_PREFIX, folder)
        _write_json(place / "preprocessor_config.json", model.preprocessor)
    _write_json(folder / "config.json", model.config)
    tokenizer, rows = folder, model.config
    for one in model.folders:
        own = folder.parent / one.companion.published
        own.mkdir(exist_ok=True)
        _write_json(own / "config.json", one.config)
        if one.companion.has_weights:
            parts[one.companion.prefix] = own
        else:
            tokenizer, rows = own, one.config
    TOKENIZERS[model.tokenizer].write_random(tokenizer, _rows(rows), model.tokenizer_class)
    return parts


def _rows(config: Mapping[str, object]) -> int:
    """Rows of the embedding; transformers' own LLaVA nests the language model's sizes."""
    whole = Config(config, "config.json")
    return (whole.section("text_config") if "text_config" in whole else whole).positive(
        "vocab_size"
    )


def published_shapes(folder: Path) -> dict[str, Shape]:
    """Every tensor the authors' code would have written, used by the export or not."""
    reading = read_spec(Checkpoint(folder))
    shapes = {take.source: take.shape for take in reading.weights.takes}
    tower = reading.weights.part("tower")
    for encoder in reading.spec.encoders:
        own = encoder_prefix(encoder)
        name, source = next((n, s) for n, s in tower.items() if n.startswith(own))
        prefix = source.removesuffix(name.removeprefix(own))
        whole = ENCODERS[encoder.kind].parameters(replace(encoder, select_layer=-1))
        shapes.update({prefix + n: tuple(s) for n, s in whole.items()})
        dropped = {drop.pattern for drop in ENCODERS[encoder.kind].drops(encoder)}
        for norm in ("vision_model.post_layernorm", "norm"):
            if f"{norm}.*" in dropped:
                shapes |= {f"{prefix}{norm}.{end}": (encoder.width,) for end in ("weight", "bias")}
    return shapes


def random_tensor(name: str, shape: Shape, seed: int) -> npt.NDArray[np.float32]:
    """Values for one tensor; they depend on its name, its shape and the seed alone."""
    rng = np.random.default_rng([seed, *name.encode()])
    values = rng.standard_normal(shape, dtype=np.float32)
    is_norm = "norm" in name or "layrnorm" in name or _is_channel_norm(name, shape)
    if len(shape) == 1 and name.endswith("weight") and is_norm:
        return 1 + np.float32(0.25) * values
    if "mixer." in name and name.endswith(_STATE_ENDINGS):
        return _recurrence(name, values)
    if len(shape) == 1:
        return np.float32(0.2) * values
    if "embed" in name and "backbone" not in name:
        return np.float32(0.5) * values
    fan_in = math.prod(shape[1:])
    gain = 2.0 if name.endswith("lm_head.weight") else 1.4
    return np.float32(gain / math.sqrt(fan_in)) * values


_STATE_ENDINGS = (".A_log", ".D", ".dt_proj.bias")


def _recurrence(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mamba's own beginning, roughened: states that last for 1 to 1,000 tokens.

    Others would forget the picture before the question is over.
    Source: state-spaces/mamba, mamba_ssm/modules/mamba_simple.py, Mamba.__init__.
    """
    if name.endswith(".A_log"):
        made = np.log(np.arange(1, values.shape[1] + 1)) + 0.1 * values
    elif name.endswith(".D"):
        made = 1 + 0.25 * values
    else:
        step = 10.0 ** np.clip(-2 + 0.5 * values, -3, -1)
        made = step + np.log(-np.expm1(-step))  # the inverse of softplus
    return np.asarray(made, np.float32)


def _is_channel_norm(name: str, shape: Shape) -> bool:
    # LDP's LayerNorms over channels are numbered, not named.
    return "mb_block" in name and len(shape) == 1


def _write_weights(
    folder: Path, shapes: Mapping[str, Shape], seed: int, weights: Format, shards: int, dtype: str
) -> None:
    names = sorted(shapes)
    chunks = [names[i::shards] for i in range(shards)]
    if shards == 1:
        _write_shard(folder / _SINGLE[weights], shapes, names, seed, dtype)
        return
    weight_map: dict[str, str] = {}
    stem, ending = _SINGLE[weights].rsplit(".", 1)
    for number, chunk in enumerate(chunks, 1):
        file = f"{stem}-{number:05d}-of-{shards:05d}.{ending}"
        _write_shard(folder / file, shapes, chunk, seed, dtype)
        weight_map.update(dict.fromkeys(chunk, file))
    _write_json(folder / _INDEX[weights], {"metadata": {}, "weight_map": weight_map})


def _write_nested(
    path: Path, model: TinyModel, shapes: Mapping[str, Shape], seed: int, dtype: str
) -> None:
    """One file of state dicts within each other, as Prismatic's trainer writes it."""
    import torch

    tensors = dict(_tensors(shapes, sorted(shapes), seed, dtype))
    tensors |= {name: tensors[repeated] for name, repeated in model.copies}
    whole: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *outer, own = name.split(".", model.nesting)
        inner = whole
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[own] = tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(whole, path)


def _write_shard(
    path: Path, shapes: Mapping[str, Shape], names: list[str], seed: int, dtype: str
) -> None:
    import torch

    tensors = dict(_tensors(shapes, names, seed, dtype))
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def _tensors(
    shapes: Mapping[str, Shape], names: list[str], seed: int, dtype: str
) -> Iterator[tuple[str, Any]]:
    import torch

    for name in names:
        values = torch.from_numpy(random_tensor(name, shapes[name], seed))
        # Mamba's authors keep the recurrence in float32.
        kept = "mixer." in name and name.endswith((".A_log", ".D"))
        yield name, values if kept else values.to(getattr(torch, dtype))


def _write_json(path: Path, data: Mapping[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
