"""Tower and projector as one Core ML program of fixed shape, in a .mlpackage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_export.errors import BuildError
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.coreml_package import name_weights, save_package
from mllm_export.export.coreml_probe import kept_in_float32, overflowing
from mllm_export.export.coreml_tools import coremltools, without_bars
from mllm_export.export.fused_attention import fuse_attention
from mllm_export.export.parts import Reader
from mllm_export.export.stored import to_stored
from mllm_export.export.vision_parts import embed, vision_parts
from mllm_export.progress import Progress, Step, silent
from mllm_export.spec import ImageInput, ImageSpec, VisionSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

OUTPUT = "image_embeds"
_STAGE = "tower"
_LEVELS = 255


def write_tower(
    path: Path,
    vision: VisionSpec,
    read_tower: Reader,
    read_projector: Reader,
    options: CoremlOptions,
    progress: Progress = silent,
) -> tuple[str, ...]:
    """Write the package, in float16 but for what overflows there; returns those operations.

    Shapes: each input f16[1, 3, S, S], or a picture of S x S -> image_embeds f32[T, D].
    Raises: BuildError when coremltools refuses a part, or a weight is not in the result.
    """
    progress(Step(stage=_STAGE, item="tracing the graph", done=0, total=3))
    weights: dict[str, Tensor] = {}
    for (prefix, parameters), read in zip(
        vision_parts(vision), (read_tower, read_projector), strict=True
    ):
        weights |= _stored(prefix, parameters, read)
    program = trace_tower(vision, weights, options)
    progress(Step(stage=_STAGE, item="converting to float16", done=1, total=3))
    _convert(path, program, vision, options, ())
    progress(Step(stage=_STAGE, item="probing ranges", done=2, total=3))
    in_float32 = overflowing(path, vision.image_inputs)
    if in_float32:
        _convert(path, program, vision, options, in_float32)
    del program
    kept = kept_in_float32(path)
    name_weights(path, weights, kept)
    return kept


def trace_tower(
    vision: VisionSpec, weights: Mapping[str, Tensor], options: CoremlOptions
) -> ExportedProgram:
    """Tower and projector as torch.export sees them, every shape a number."""
    import torch

    whole = _whole(vision, weights, options)
    with torch.no_grad(), without_bars():
        given = tuple(torch.zeros(one.shape) for one in vision.image_inputs)
        program = torch.export.export(whole, given)
        if options.has_attention:
            fuse_attention(program)
        plain: ExportedProgram = program.run_decompositions({})
        return plain


def _stored(
    prefix: str, parameters: Mapping[str, tuple[int, ...]], read: Reader
) -> dict[str, Tensor]:
    import torch

    # A copy each: stored values may be views of a file that is mapped read-only.
    return {prefix + n: torch.tensor(to_stored(n, read(n))) for n in parameters}


def _whole(vision: VisionSpec, weights: Mapping[str, Tensor], options: CoremlOptions) -> nn.Module:
    from torch import nn

    # Buffers know no dots in their names.
    numbered = {name: f"w{number}" for number, name in enumerate(weights)}

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, values in weights.items():
                self.register_buffer(numbered[name], values)

        def forward(self, *given: Tensor) -> Tensor:
            if options.image_input:
                pairs = zip(vision.image_inputs, given, strict=True)
                given = tuple(_normalised(one.image, levels) for one, levels in pairs)
            named = {name: getattr(self, buffer) for name, buffer in numbered.items()}
            return embed(vision, named, given)

    return Whole().eval()


def _normalised(image: ImageSpec, levels: Tensor) -> Tensor:
    """Levels of 0 to 255 as the tower's pixels.

    Core ML's ImageType takes one scale for all channels, and these models have three: so the
    program itself multiplies and adds.
    """
    import torch

    mean, std = torch.tensor(image.mean), torch.tensor(image.std)
    scale, shift = 1 / (_LEVELS * std), -mean / std
    return levels * scale.reshape(1, 3, 1, 1) + shift.reshape(1, 3, 1, 1)


def _convert(
    path: Path,
    program: ExportedProgram,
    vision: VisionSpec,
    options: CoremlOptions,
    in_float32: tuple[str, ...],
) -> None:
    import numpy as np

    ct = coremltools()
    kept = frozenset(in_float32)
    try:
        with without_bars():
            model = ct.convert(
                program,
                inputs=[_input(ct, one, options) for one in vision.image_inputs],
                outputs=[ct.TensorType(name=OUTPUT, dtype=np.float32)],
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, options.deployment),
                compute_precision=ct.transform.FP16ComputePrecision(
                    op_selector=lambda operation: operation.name not in kept
                ),
                skip_model_load=True,
            )
    except Exception as failure:
        # coremltools raises what comes to hand: NotImplementedError, TypeError, RuntimeError.
        kinds = " and ".join(encoder.kind for encoder in vision.encoders)
        raise BuildError(
            f"{kinds}: coremltools {ct.__version__} cannot convert the tower "
            f"({type(failure).__name__}: {' '.join(str(failure).split())[:300]})"
        ) from failure
    save_package(model, path)


def _input(ct: Any, one: ImageInput, options: CoremlOptions) -> Any:
    if options.image_input:
        return ct.ImageType(name=one.name, shape=one.shape, color_layout=ct.colorlayout.RGB)
    return ct.TensorType(name=one.name, shape=one.shape)
