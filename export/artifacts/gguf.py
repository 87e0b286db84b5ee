"""The language model as GGUF."""

from __future__ import annotations

from collections.abc import Sequence

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.artifact import Work, part_reader
from mllm_export.export.child import run_in_child
from mllm_export.export.decoder_plan import (
    StoredTensor,
    general_fields,
    gguf_tensors,
    plan_decoder_tensors,
)
from mllm_export.export.family import Reading
from mllm_export.export.parts import DECODERS, TOKENIZERS, GgufField
from mllm_export.export.target import Target
from mllm_export.plan import ArtifactPlan
from mllm_export.progress import Progress
from mllm_export.quantize.recipe import Recipe


class GgufDecoder:
    """decoder.gguf."""

    def plan(self, reading: Reading, target: Target, recipe: Recipe) -> ArtifactPlan:
        """One row per tensor, each with the layout that the recipe gives it."""
        del target
        tensors = plan_decoder_tensors(
            reading.spec.decoder,
            recipe,
            reading.weights.part("decoder"),
            imatrix=recipe.weighs,
        )
        return ArtifactPlan(
            role="decoder",
            path="decoder.gguf",
            format="gguf",
            scheme=recipe.decoder_scheme,
            tensors=tensors,
        )

    def write(self, work: Work, artifact: ArtifactPlan, progress: Progress) -> None:
        """Straight from the checkpoint's tensors."""
        run_in_child("decoder", write_decoder_stage, work, artifact, progress=progress)


def write_decoder_stage(work: Work, artifact: ArtifactPlan, progress: Progress) -> None:
    """The language model as GGUF, with what calibration saw of it beside."""
    from mllm_export.export.decoder_calibrated import chosen_values
    from mllm_export.export.formats.gguf import write_decoder

    checkpoint = Checkpoint(*work.source)
    tensors = gguf_tensors(work.reading.spec.decoder, artifact.tensors)
    fields = decoder_fields(checkpoint, work.reading, artifact.scheme, tensors)
    read = part_reader(checkpoint, work.reading.weights.part("decoder"))
    with chosen_values(work, tensors, read) as values:
        write_decoder(work.path(artifact), fields, tensors, values, progress)


def decoder_fields(
    checkpoint: Checkpoint, reading: Reading, scheme: str, tensors: Sequence[StoredTensor]
) -> tuple[GgufField, ...]:
    """The file's keys: general ones, the model's, its tokenizer's."""
    spec = reading.spec
    # The family, not the folder's name: the same weights give the same bytes wherever they lie.
    return (
        *general_fields(spec.family, scheme, tensors),
        *DECODERS[spec.decoder.kind].metadata(spec.decoder),
        *TOKENIZERS[spec.tokenizer.kind].metadata(
            reading.tokenizer_path(checkpoint), spec.tokenizer, spec.decoder.vocab
        ),
        GgufField(key="tokenizer.chat_template", value=reading.chat_template, kind="STRING"),
    )


ARTIFACT = GgufDecoder()
