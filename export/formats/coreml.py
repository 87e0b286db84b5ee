"""A graph as one Core ML program of fixed shape, in a .mlpackage.

The neural engine is a black box: Apple does not say what Core ML gives it, and nothing here can
see it. By others' trials (hollance/neural-engine, docs/unsupported-layers.md, which calls some of
it guesses) gathers, dilated convolutions, recurrent and custom layers run elsewhere; float32 does
too, since it computes in float16. Apple's own advice (apple/ml-ane-transformers) is maps of
[B, C, 1, S] under 1x1 convolutions and few reshapes. So every shape here is a number, all is
float16 but for what overflows, attention is one operation where the system has it, and so is
GELU; rows stay [1, T, D] under `linear`, as published. What may leave the engine: `gather` and the
integer operations of a text tower, and the outputs' casts to float32. Xcode's performance report
tells for a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_export.errors import BuildError
from mllm_export.export.coreml_gelu import name_gelus
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.coreml_package import name_weights, save_package
from mllm_export.export.coreml_probe import kept_in_float32, overflowing
from mllm_export.export.coreml_tools import coremltools, without_bars
from mllm_export.export.fused_attention import fuse_attention
from mllm_export.export.graph import Graph, tower_graph
from mllm_export.export.parts import Reader
from mllm_export.export.stored import to_stored
from mllm_export.progress import Progress, Step, silent
from mllm_export.spec import ImageSpec, VisionSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

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
    """Tower and projector; see `write_graph`.

    Shapes: each input f16[1, 3, S, S], or a picture of S x S -> image_embeds f32[T, D].
    """
    return write_graph(path, tower_graph(vision), (read_tower, read_projector), options, progress)


def write_graph(
    path: Path,
    graph: Graph,
    readers: Sequence[Reader],
    options: CoremlOptions,
    progress: Progress = silent,
) -> tuple[str, ...]:
    """Write the package, in float16 but for what overflows there; returns those operations.

    `readers` give the values of the graph's parts, in order; ids go in as i32.
    Raises: BuildError when coremltools refuses a part, or a weight is not in the result.
    """
    progress(Step(stage=_STAGE, item="tracing the graph", done=0, total=3))
    weights: dict[str, Tensor] = {}
    for (prefix, parameters), read in zip(graph.parts, readers, strict=True):
        weights.update(_stored(prefix, parameters, read))
    program = trace_graph(graph, weights, options)
    progress(Step(stage=_STAGE, item="converting to float16", done=1, total=3))
    _convert(path, program, graph, options, ())
    progress(Step(stage=_STAGE, item="probing ranges", done=2, total=3))
    in_float32 = overflowing(path, graph)
    if in_float32:
        _convert(path, program, graph, options, in_float32)
    del program
    kept = kept_in_float32(path)
    name_weights(path, weights, kept)
    return kept


def trace_graph(
    graph: Graph, weights: Mapping[str, Tensor], options: CoremlOptions
) -> ExportedProgram:
    """The graph as torch.export sees it, every shape a number."""
    import torch

    dtype = torch.int32 if graph.integer else torch.float32
    whole = _whole(graph, weights, options)
    with torch.no_grad(), without_bars():
        given = tuple(torch.zeros(shape, dtype=dtype) for shape in graph.inputs.values())
        program = torch.export.export(whole, given)
        if options.has_attention:
            fuse_attention(program)
        plain: ExportedProgram = program.run_decompositions({})
        name_gelus(plain)
        return plain


def _stored(
    prefix: str, parameters: Mapping[str, tuple[int, ...]], read: Reader
) -> dict[str, Tensor]:
    import torch

    # A copy each: stored values may be views of a file that is mapped read-only.
    return {prefix + n: torch.tensor(to_stored(n, read(n))) for n in parameters}


def _whole(graph: Graph, weights: Mapping[str, Tensor], options: CoremlOptions) -> nn.Module:
    from torch import nn

    # Buffers know no dots in their names.
    numbered = {name: f"w{number}" for number, name in enumerate(weights)}
    images = tuple(graph.images.values()) if options.image_input else ()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, values in weights.items():
                self.register_buffer(numbered[name], values)

        def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
            if images:
                pairs = zip(images, given, strict=True)
                given = tuple(_normalised(image, levels) for image, levels in pairs)
            return graph.apply({n: getattr(self, b) for n, b in numbered.items()}, given)

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
    graph: Graph,
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
                inputs=[_input(ct, graph, name, options) for name in graph.inputs],
                outputs=[ct.TensorType(name=n, dtype=np.float32) for n in graph.outputs],
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
            f"graph '{graph.name}': coremltools {ct.__version__} cannot convert it "
            f"({type(failure).__name__}: {' '.join(str(failure).split())[:300]})"
        ) from failure
    save_package(model, path)


def _input(ct: Any, graph: Graph, name: str, options: CoremlOptions) -> Any:
    import numpy as np

    shape = graph.inputs[name]
    if graph.integer:
        return ct.TensorType(name=name, shape=shape, dtype=np.int32)
    if options.image_input:
        return ct.ImageType(name=name, shape=shape, color_layout=ct.colorlayout.RGB)
    return ct.TensorType(name=name, shape=shape)
