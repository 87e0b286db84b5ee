"""What stands in the decoder's GGUF file: tensors with their layouts, and the general keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from mllm_export.errors import PlanError
from mllm_export.export.parts import DECODERS, Foldable, GgufField, GgufTensor
from mllm_export.plan import ArtifactPlan, Importance, TensorPlan
from mllm_export.quantize.layout import LAYOUTS, stored_bytes
from mllm_export.quantize.method import METHODS
from mllm_export.quantize.recipe import Recipe, Storable, choose_layouts
from mllm_export.quantize.selectors import Facts
from mllm_export.records import record
from mllm_export.spec import DecoderSpec

FLOATS = ("F32", "F16", "BF16")
UNWEIGHED = (*FLOATS, "Q8_0")
"""Layouts that an importance matrix changes nothing of. Source: ggml-quants.c, quantize_q8_0."""


@record
class StoredTensor:
    """A tensor of a GGUF file and the layout it is stored in."""

    tensor: GgufTensor
    scheme: str
    """A file in quantize/layouts."""

    @property
    def size_bytes(self) -> int:
        """Size in the file, without padding."""
        return stored_bytes(self.scheme, self.tensor.shape)


def plan_decoder_tensors(
    spec: DecoderSpec, recipe: Recipe, sources: Mapping[str, str], *, imatrix: bool = False
) -> tuple[TensorPlan, ...]:
    """Every tensor of the file; `sources` maps published names to the checkpoint's.

    `imatrix` says whether an importance matrix is there: llama.cpp's own mixtures ask that.

    Raises: RecipeError for a rule that takes nothing, or a tensor that no rule takes.
    """
    tensors = DECODERS[spec.kind].tensors(spec)
    facts = Facts(imatrix=imatrix, gqa=spec.heads // max(spec.kv_heads, 1))
    storable = [Storable(shape=t.shape, names=(t.name, *t.aliases), least=t.least) for t in tensors]
    return tuple(
        TensorPlan(
            name=tensor.name,
            sources=tuple(sources[name] for name in tensor.sources),
            shape=tensor.shape,
            scheme=choice.scheme,
            size_bytes=stored_bytes(choice.scheme, tensor.shape),
            note="; ".join(filter(None, (choice.note, _left_alone(recipe, choice.scheme)))),
        )
        for tensor, choice in zip(tensors, choose_layouts(recipe, storable, facts), strict=True)
    )


def _left_alone(recipe: Recipe, scheme: str) -> str:
    """Which of the recipe's methods cannot choose this layout's values, if any."""
    choosing = [name for name in recipe.decoder_methods if METHODS[name].chooses_codes]
    if not choosing or scheme in FLOATS or LAYOUTS[scheme].has_even_steps:
        return ""
    return f"rounded by ggml, not by {' and '.join(choosing)}: the steps of {scheme} are not even"


def importance_of(
    spec: DecoderSpec, recipe: Recipe, artifacts: Sequence[ArtifactPlan], given: Importance
) -> Importance:
    """Where the importance matrix comes from, or that none of the layouts asks for one.

    Raises: PlanError for a method that this decoder, or the matrix that was given, cannot serve.
    """
    if "awq" in recipe.decoder_methods and not isinstance(DECODERS[spec.kind], Foldable):
        raise PlanError(
            f"recipe '{recipe.name}': method 'awq' needs a decoder that says where scales may go, "
            f"'{spec.kind}' does not; use 'gptq', or add folds to export/decoders/{spec.kind}.py"
        )
    if given == "file" and recipe.decoder_methods not in {(), ("rtn",)}:
        raise PlanError(
            f"recipe '{recipe.name}': method '{recipe.decoder_methods[-1]}' does not work on an "
            "importance matrix; leave --imatrix out, or choose a recipe with 'rtn'"
        )
    decoder = next(a for a in artifacts if a.role == "decoder")
    weighs = any(row.scheme not in UNWEIGHED for row in decoder.tensors)
    if not recipe.weighs or not (weighs or recipe.needs_inputs):
        return "none"
    return "file" if given == "file" else "calibration"


def gguf_tensors(spec: DecoderSpec, plan: Iterable[TensorPlan]) -> tuple[StoredTensor, ...]:
    """The planned tensors with the transforms that make them."""
    tensors = {tensor.name: tensor for tensor in DECODERS[spec.kind].tensors(spec)}
    return tuple(StoredTensor(tensor=tensors[t.name], scheme=t.scheme) for t in plan)


def general_fields(
    name: str, scheme: str, tensors: Sequence[StoredTensor]
) -> tuple[GgufField, ...]:
    """Keys that stand beside the architecture's: what the file is and how it is stored.

    Source: llama.cpp, conversion/base.py, ModelBase.prepare_metadata.
    """
    import gguf

    parameters = sum(math.prod(stored.tensor.shape) for stored in tensors)
    label = gguf.size_label(parameters, parameters, 0, 0)
    return (
        GgufField(key="general.type", value="model", kind="STRING"),
        GgufField(key="general.name", value=name, kind="STRING"),
        GgufField(key="general.size_label", value=label, kind="STRING"),
        GgufField(key="general.file_type", value=file_type(scheme), kind="UINT32"),
        GgufField(key="general.quantization_version", value=gguf.GGML_QUANT_VERSION, kind="UINT32"),
    )


def file_type(scheme: str) -> int:
    """llama.cpp's number for a file most of whose weights have this layout.

    Source: llama.h, enum llama_ftype.
    """
    import gguf

    known = {kind.name: int(kind) for kind in gguf.LlamaFileType}
    names = ("ALL_F32",) if scheme == "F32" else (f"MOSTLY_{scheme}", f"MOSTLY_{scheme}_S")
    return next(known[name] for name in names if name in known)
