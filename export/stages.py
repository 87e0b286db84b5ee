"""The stages of a build, each fit to run in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.decoder_plan import general_fields, gguf_tensors
from mllm_export.export.family import Reading
from mllm_export.export.parts import DECODERS, TOKENIZERS, Array, GgufField, Reader
from mllm_export.plan import ArtifactPlan
from mllm_export.progress import Progress

Source = tuple[Path, Path | str | None]
"""Where a checkpoint is: its folder, and what --vision-tower said."""


def part_reader(checkpoint: Checkpoint, sources: Mapping[str, str]) -> Reader:
    """Published names of one part to stored values."""

    def read(name: str) -> Array:
        return checkpoint.read(sources[name])

    return read


def write_tower_stage(source: Source, reading: Reading, path: Path, progress: Progress) -> None:
    """Tower and projector as one float32 ONNX graph."""
    from mllm_export.export.formats.onnx import write_tower

    checkpoint = Checkpoint(*source)
    write_tower(
        path,
        reading.spec.encoders[0],
        reading.spec.projector,
        part_reader(checkpoint, reading.weights.part("tower")),
        part_reader(checkpoint, reading.weights.part("projector")),
        progress,
    )


def quantize_tower_stage(float_path: Path, path: Path, preset: str, progress: Progress) -> None:
    """The float graph's INT8 twin."""
    from mllm_export.export.tower_int8 import quantize_tower

    quantize_tower(float_path, path, preset, progress)


def write_decoder_stage(
    source: Source, reading: Reading, artifact: ArtifactPlan, path: Path, progress: Progress
) -> None:
    """The language model as GGUF."""
    from mllm_export.export.formats.gguf import write_decoder

    checkpoint = Checkpoint(*source)
    spec = reading.spec
    tensors = gguf_tensors(spec.decoder, artifact.tensors)
    # The family, not the folder's name: the same weights give the same bytes wherever they lie.
    fields: tuple[GgufField, ...] = (
        *general_fields(spec.family, artifact.scheme, tensors),
        *DECODERS[spec.decoder.kind].metadata(spec.decoder),
        *TOKENIZERS[spec.tokenizer.kind].metadata(
            checkpoint.path, spec.tokenizer, spec.decoder.vocab
        ),
        GgufField(key="tokenizer.chat_template", value=reading.chat_template, kind="STRING"),
    )
    write_decoder(
        path,
        fields,
        tensors,
        part_reader(checkpoint, reading.weights.part("decoder")),
        progress,
    )


def write_mmproj_stage(source: Source, reading: Reading, path: Path, progress: Progress) -> None:
    """Tower and projector for llama.cpp's own multimodal tools."""
    from mllm_export.export.formats.mmproj import write_mmproj

    checkpoint = Checkpoint(*source)
    write_mmproj(
        path,
        reading.spec,
        part_reader(checkpoint, reading.weights.part("tower")),
        part_reader(checkpoint, reading.weights.part("projector")),
        progress,
    )
