"""A float tower to one whose tensors are stored as the plan says.

Piece by piece: the float piece gets ONNX Runtime's own operators, runs on the calibration pictures,
its outlying activations are moved into weights, its products are quantized, and its float outputs
are the next piece's inputs. After every step it is run again and held against what it gave before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mllm_export.catalog import unknown
from mllm_export.errors import BuildError, TargetError
from mllm_export.export.formats.onnx import check_graph
from mllm_export.export.formats.onnx_run import run_once
from mllm_export.export.graph_pass import run_passes
from mllm_export.export.onnx_stream import open_onnx, write_onnx
from mllm_export.export.tower_blocks import quantize_blocks
from mllm_export.export.tower_half import store_half
from mllm_export.export.tower_int8 import PRESETS, quantize_dynamic, quantize_static
from mllm_export.export.tower_job import TowerJob
from mllm_export.export.tower_pieces import PIECE_BYTES, Joined, piece_model, products, split
from mllm_export.export.tower_ranges import Floats, Statistics, observe, unseen
from mllm_export.export.tower_smoothing import smooth
from mllm_export.export.tower_steps import FUSED, QUANTIZED, SMOOTHED, StepMeter, TowerSteps
from mllm_export.pixels import tiles_of
from mllm_export.progress import Progress, Step, silent
from mllm_export.quantize.tower_recipe import TowerRanges
from mllm_export.quantize.tower_scheme import TowerScheme, tower_scheme

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

_STAGE = "tower quantized"

_NOISE_IDS = 8
"""Every vocabulary has as many."""


def quantize_tower(
    float_path: Path, out_path: Path, job: TowerJob, progress: Progress = silent
) -> TowerSteps:
    """Write the twin of a float tower that the job describes; returns what each step moved.

    Raises: TargetError for a preset that is not in `PRESETS`; BuildError when there are no
    calibration pictures though they are needed, a step changes what it must not, or ONNX Runtime
    refuses the result.
    """
    if job.uses("int8") and job.preset not in PRESETS:
        raise TargetError(unknown("vision_preset", job.preset, list(PRESETS)))
    source = open_onnx(float_path)
    joined = Joined(source)
    notes: dict[str, str] = {}
    pieces = split(source, PIECE_BYTES)
    total = sum(piece.size_bytes for piece in pieces)
    pictures = _pictures(job, source.skeleton.graph.input)
    meter = StepMeter()
    done = 0
    for at, piece in enumerate(pieces):
        progress(Step(stage=_STAGE, item=piece.output, done=done, total=total))
        model = piece_model(source, piece)
        meter.begin(model, pictures[0])
        meter.count(run_passes(model))
        plain = meter.after(FUSED, model)
        if job.smoothing and job.observes:
            peaks = _observed(model, job, pictures, "minmax").peaks
            notes.update(smooth(model, _wanted(model, job, "int8"), peaks))
            meter.after(SMOOTHED, model)
        # Without calibration the step's own run is all that there is to see.
        seen = _observed(model, job, pictures, job.ranges) if job.observes else unseen(plain[0])
        made_piece = _quantize(model, job, seen)
        meter.after(QUANTIZED, made_piece)
        joined.add(made_piece)
        wanted = {name for later in pieces[at + 1 :] for name in later.inputs}
        for values, made in zip(pictures, seen.outputs, strict=True):
            values[piece.output] = made
            for name in values.keys() - wanted:
                del values[name]
        done += piece.size_bytes
    skeleton = joined.skeleton(notes)
    check_graph(skeleton, joined.shapes())
    write_onnx(out_path, skeleton, joined.tensors.values())
    run_once(out_path, _shapes(skeleton.graph.output))
    return meter.result()


def _shapes(ports: Sequence[ValueInfoProto]) -> dict[str, tuple[int, ...]]:
    """Of a graph's inputs or outputs, by name."""
    return {
        port.name: tuple(side.dim_value for side in port.type.tensor_type.shape.dim)
        for port in ports
    }


def _pictures(job: TowerJob, ports: Sequence[ValueInfoProto]) -> Sequence[dict[str, Floats]]:
    """The graph's inputs for each calibration picture, by name; noise where none is needed."""
    shapes = _shapes(ports)
    if not job.observes:
        return [{port.name: _noise(port, shapes[port.name]) for port in ports}]
    if job.pixels is None:
        raise BuildError(
            "static 8-bit activations and smoothing need calibration pictures, none were given"
        )
    return [tiles_of(one[None], shapes)[0] for one in np.load(job.pixels, mmap_mode="r")]


def _noise(port: ValueInfoProto, shape: tuple[int, ...]) -> Floats:
    """Something to hold steps against each other on: a few ids, or normal values."""
    from onnx import TensorProto

    if port.type.tensor_type.elem_type == TensorProto.INT64:
        ids = np.arange(np.prod(shape), dtype=np.int64) % _NOISE_IDS
        return ids.reshape(shape)  # type: ignore[return-value]  # a text tower's only input
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _wanted(model: ModelProto, job: TowerJob, kind: str) -> list[str]:
    """Weights of this piece that get a scheme of that kind."""
    stored = {entry.name for entry in model.graph.initializer}
    return [n for n, s in job.schemes.items() if n in stored and tower_scheme(s).kind == kind]


def _observed(
    model: ModelProto,
    job: TowerJob,
    pictures: Sequence[Mapping[str, Floats]],
    method: TowerRanges,
) -> Statistics:
    wanted = products(model, _wanted(model, job, "int8"))
    return observe(model, [node.input[0] for node in wanted], pictures, method)


def _quantize(model: ModelProto, job: TowerJob, seen: Statistics) -> ModelProto:
    stored = {entry.name for entry in model.graph.initializer}
    for scheme, names in _by_scheme(job.schemes, stored):
        wanted = [node.name for node in products(model, names)]
        if scheme.kind == "float":
            store_half(model, names if scheme.bits == 16 else [])
        elif not wanted:
            continue
        elif scheme.kind == "blocks":
            model = quantize_blocks(model, wanted, scheme)
        elif scheme.static:
            model = quantize_static(model, wanted, job.preset, seen.ranges)
        else:
            model = quantize_dynamic(model, wanted, job.preset)
    return model


def _by_scheme(schemes: Mapping[str, str], stored: set[str]) -> list[tuple[TowerScheme, list[str]]]:
    found: dict[str, list[str]] = {}
    for name, scheme in schemes.items():
        if name in stored:
            found.setdefault(scheme, []).append(name)
    return [(tower_scheme(scheme), names) for scheme, names in sorted(found.items())]
