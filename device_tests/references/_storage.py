"""Where the published tensors must stand in the export's files, and how they lie there.

The names in GGUF come from gguf-py's own table, the ones in ONNX are the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from mllm_export.device_tests.originals import Original
from mllm_export.device_tests.reference import Reader
from mllm_export.errors import CheckError


def onnx_originals(
    module: nn.Module, published: str, stored: str, read: Reader, source: str
) -> dict[str, Original]:
    """Every parameter of a module, by name in the ONNX file.

    `published` is read before the parameter's name; `source` is the same in the checkpoint.
    """
    return {
        stored + name: Original(
            source=source + name,
            shape=_stored_shape(owner, parameter),
            read=partial(read, published + name),
            transposed=_is_linear(owner, name),
        )
        for owner, name, parameter in _parameters(module)
    }


def _parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for prefix, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            yield owner, f"{prefix}.{name}" if prefix else name, parameter


def _is_linear(owner: nn.Module, name: str) -> bool:
    pointwise = isinstance(owner, nn.Conv2d) and owner.kernel_size == (1, 1)
    return name.endswith("weight") and (isinstance(owner, nn.Linear) or pointwise)


def _stored_shape(owner: nn.Module, parameter: nn.Parameter) -> tuple[int, ...]:
    shape = tuple(parameter.shape)
    is_matrix = len(shape) > 1 and _is_linear(owner, "weight")
    return (shape[1], shape[0]) if is_matrix else shape


def gguf_names(architecture: str, layers: int) -> Any:
    """gguf-py's table of names; `architecture` as its MODEL_ARCH spells it."""
    import gguf

    return gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], layers)


def gguf_name(table: Any, source: str) -> str:
    """Name in GGUF of a tensor that transformers names so.

    Raises: CheckError when gguf-py has none.
    """
    name = table.get_name(source, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise CheckError(f"gguf-py has no name for '{source}'")
    return str(name)
