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
from mllm_export.export.parts import ENCODERS, PROJECTORS, Reader
from mllm_export.export.stored import PROJECTOR, TOWER, to_stored
from mllm_export.progress import Progress, Step, silent
from mllm_export.spec import EncoderSpec, ImageSpec, ProjectorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

INPUT = "pixel_values"
OUTPUT = "image_embeds"
_STAGE = "tower"
_LEVELS = 255


def write_tower(
    path: Path,
    encoder: EncoderSpec,
    projector: ProjectorSpec,
    read_tower: Reader,
    read_projector: Reader,
    options: CoremlOptions,
    progress: Progress = silent,
) -> tuple[str, ...]:
    """Write the package, in float16 but for what overflows there; returns those operations.

    Shapes: pixel_values f16[1, 3, S, S], or a picture of S x S -> image_embeds f32[T, D].
    Raises: BuildError when coremltools refuses a part, or a weight is not in the result.
    """
    progress(Step(stage=_STAGE, item="tracing the graph", done=0, total=3))
    weights = {
        **_stored(TOWER, ENCODERS[encoder.kind].parameters(encoder), read_tower),
        **_stored(PROJECTOR, PROJECTORS[projector.kind].parameters(projector), read_projector),
    }
    program = trace_tower(encoder, projector, weights, options)
    progress(Step(stage=_STAGE, item="converting to float16", done=1, total=3))
    _convert(path, program, encoder, options, ())
    progress(Step(stage=_STAGE, item="probing ranges", done=2, total=3))
    in_float32 = overflowing(path, encoder.image)
    if in_float32:
        _convert(path, program, encoder, options, in_float32)
    del program
    kept = kept_in_float32(path)
    name_weights(path, weights, kept)
    return kept


def trace_tower(
    encoder: EncoderSpec,
    projector: ProjectorSpec,
    weights: Mapping[str, Tensor],
    options: CoremlOptions,
) -> ExportedProgram:
    """Tower and projector as torch.export sees them, every shape a number."""
    import torch

    size_px = encoder.image.size_px
    whole = _whole(encoder, projector, weights, options)
    with torch.no_grad(), without_bars():
        program = torch.export.export(whole, (torch.zeros(1, 3, size_px, size_px),))
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


def _whole(
    encoder: EncoderSpec,
    projector: ProjectorSpec,
    weights: Mapping[str, Tensor],
    options: CoremlOptions,
) -> nn.Module:
    from torch import nn

    # Buffers know no dots in their names.
    numbered = {name: f"w{number}" for number, name in enumerate(weights)}

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, values in weights.items():
                self.register_buffer(numbered[name], values)

        def forward(self, pixel_values: Tensor) -> Tensor:
            pixels = _normalised(encoder.image, pixel_values) if options.image_input else None
            features = ENCODERS[encoder.kind].apply(
                encoder, self.below(TOWER), pixel_values if pixels is None else pixels
            )
            rows = PROJECTORS[projector.kind].apply(projector, self.below(PROJECTOR), features)
            return rows.reshape(projector.tokens_out, projector.out_width)

        def below(self, prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): getattr(self, buffer)
                for name, buffer in numbered.items()
                if name.startswith(prefix)
            }

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
    encoder: EncoderSpec,
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
                inputs=[_input(ct, encoder.image.size_px, options)],
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
        raise BuildError(
            f"{encoder.kind}: coremltools {ct.__version__} cannot convert the tower "
            f"({type(failure).__name__}: {' '.join(str(failure).split())[:300]})"
        ) from failure
    save_package(model, path)


def _input(ct: Any, size_px: int, options: CoremlOptions) -> Any:
    shape = (1, 3, size_px, size_px)
    if options.image_input:
        return ct.ImageType(name=INPUT, shape=shape, color_layout=ct.colorlayout.RGB)
    return ct.TensorType(name=INPUT, shape=shape)
