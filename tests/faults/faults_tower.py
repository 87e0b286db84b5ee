"""Faults between pixels and image embeddings: tower and projector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import graph_edits as graph
import numpy as np
import pytest
from fault import Fault, Plant
from fault_bench import Bench, Edit

from mllm_export.bundle import Bundle
from mllm_export.progress import silent
from mllm_export.runtimes.embedding_cache import EmbeddingCache
from mllm_export.spec import ModelSpec

TOWER = ("tower",)
Read = Callable[[Callable[[str], np.ndarray], str], np.ndarray]


def edited(edit: Edit) -> Plant:
    return lambda bench, _: bench.with_tower(edit=edit)


def encoder_spec(change: Callable[[object], dict[str, object]]) -> Plant:
    """The exporter reads the tower's config otherwise and traces another graph."""

    def other(model: ModelSpec) -> ModelSpec:
        first, *others = model.encoders
        return replace(model, encoders=(replace(first, **change(first)), *others))

    return lambda bench, _: bench.with_tower(spec=other)


def reads(**changes: Read) -> Plant:
    """Tensors by the end of their names, with _ for the dots."""
    by_ending = {ending.replace("__", "."): change for ending, change in changes.items()}
    return lambda bench, _: bench.with_tower(read=by_ending)


def over_grid(change: Callable[[np.ndarray], np.ndarray]) -> Read:
    """Position embeddings as rows and columns of patches, the class token apart."""

    def read(get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
        rows = np.array(get(name), np.float32)
        side = round((len(rows) - 1) ** 0.5)
        grid = change(rows[1:].reshape(side, side, -1))
        return np.concatenate([rows[:1], grid.reshape(side * side, -1)])

    return read


def shifted(get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    return np.roll(np.array(get(name), np.float32), 1, axis=0)


def other_channels(get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    return np.array(get(name), np.float32)[:, ::-1]


def of(name_from: str, name_to: str) -> Read:
    """Another tensor in its place."""

    def read(get: Callable[[str], np.ndarray], name: str) -> np.ndarray:
        return get(name.replace(name_from, name_to))

    return read


def tanh_gelu(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """The projector's GELU in its tanh form, traced from the exporter's own code."""
    from torch.nn import functional

    plain = functional.gelu
    patch.setattr(functional, "gelu", lambda x: plain(x, approximate="tanh"))
    made = bench.with_tower(spec=lambda model: model)
    patch.undo()
    return made


def of_sibling(part: str) -> Plant:
    """Tensors of one part come from another checkpoint of the same sizes."""
    from mllm_export.checkpoint import Checkpoint

    def plant(bench: Bench, _: pytest.MonkeyPatch) -> Bundle:
        other = Checkpoint(bench.sibling)
        sources = bench.job.reading.weights.part(part)  # type: ignore[arg-type]
        changes: dict[str, Read] = {
            name: lambda _, name: other.read(sources[name]) for name in sources
        }
        return bench.with_tower(read=changes)

    return plant


def quantized_by_mistake(bench: Bench, _: pytest.MonkeyPatch) -> Bundle:
    """INT8 where the recipe says float."""
    from mllm_export.export.artifacts.onnx import quantize_tower_stage

    quantized = Bench(bench.folder, bench.checkpoint, "int8", bench.oracle, bench.sibling)
    job = quantized.tower_job(bench.honest)

    def change(path: Path) -> None:
        plain = path.with_name("plain.onnx")
        path.rename(plain)
        quantize_tower_stage(plain, path, job, silent)
        plain.unlink()

    return bench.with_file("tower", change)


def stale_cache(bench: Bench, patch: pytest.MonkeyPatch) -> Bundle:
    """Every picture gets the embeddings of the first."""
    plain = EmbeddingCache.get
    first: list[np.ndarray] = []

    def get(self: EmbeddingCache, pixels: np.ndarray, compute: Callable) -> np.ndarray:
        if not first:
            first.append(pixels)
        return plain(self, first[0], compute)

    patch.setattr(EmbeddingCache, "get", get)
    return bench.honest


def fault(
    name: str, plant: Plant, quick: bool = False, rungs: tuple[str, ...] = TOWER, **more: object
) -> Fault:
    return Fault(name=name, stage="tower", rungs=rungs, plant=plant, quick=quick, **more)


FAULTS = (
    fault("CLS kept", edited(graph.keep_cls), quick=True),
    fault(
        "select layer off by one",
        encoder_spec(lambda one: {"select_layer": one.select_layer - 1}),
    ),
    fault(
        "position embedding transposed",
        reads(position_embedding__weight=over_grid(lambda grid: grid.swapaxes(0, 1))),
        quick=True,
    ),
    fault("position embedding shifted by one", reads(position_embedding__weight=shifted)),
    fault(
        "position embedding mirrored",
        reads(position_embedding__weight=over_grid(lambda grid: grid[:, ::-1])),
    ),
    fault("patch embedding with channels reversed", reads(patch_embedding__weight=other_channels)),
    fault("GELU variant in the tower", encoder_spec(lambda _: {"activation": "gelu"})),
    fault("LayerNorm epsilon", encoder_spec(lambda _: {"norm_eps": 1e-6})),
    fault("attention scale missing", edited(graph.drop_attention_scale), quick=True),
    fault("softmax over the wrong axis", edited(graph.softmax_over_queries)),
    fault("norm before the layers missing", edited(graph.drop_first_norm)),
    fault("a norm applied after the selected layer", edited(graph.add_last_norm)),
    fault("bias of one projection missing", edited(graph.without_bias("layers.0.mlp.fc2.bias"))),
    fault(
        "key read in place of value",
        reads(**{"layers__1__self_attn__v_proj__weight": of("v_proj", "k_proj")}),
    ),
    fault("float16 overflow in one layer", edited(graph.overflow_in_one_layer), quick=True),
    fault("tower ignores the picture", edited(graph.blind)),
    fault("tower of another checkpoint", of_sibling("tower")),
    fault("tower quantized by mistake", quantized_by_mistake, rungs=("weights",)),
    fault("embeddings of another picture kept", stale_cache),
    fault("LDPv2 residual dropped", edited(graph.drop_residual), quick=True),
    fault("maximum in place of average pool", edited(graph.max_pool)),
    fault("every second token in place of the average", edited(graph.picked_pool)),
    fault("GELU variant in the projector", tanh_gelu),
    fault("projector of another checkpoint", of_sibling("projector")),
    fault("tower of another checkpoint, INT8", of_sibling("tower"), recipe="int4"),
    fault("LDPv2 residual dropped, INT8", edited(graph.drop_residual), recipe="int4"),
)
