"""Tensor files, memory-mapped: safetensors and PyTorch's zip pickles, nothing executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mllm_export.errors import CheckpointError
from mllm_export.pages import forget_pages
from mllm_export.records import record
from mllm_export.torch_archive import ArchivedTensor, read_archive

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
T = TypeVar("T")

_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}


@record
class TensorInfo:
    """One stored tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str


class Shard(Protocol):
    """One file of tensors."""

    path: Path

    def infos(self) -> Mapping[str, TensorInfo]:
        """What the file holds."""

    def read(self, name: str) -> Array:
        """A read-only view of one tensor in its stored dtype."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of that name; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def open_shard(path: Path) -> Shard:
    """Open a tensor file by its ending.

    Raises: CheckpointError when the file is missing, cut short, or unsafe.
    """
    if not path.is_file():
        raise CheckpointError(f"shard '{path.name}' is missing from {path.parent}; copy it there")
    if path.suffix == ".safetensors":
        return SafetensorsShard(path)
    archived = read_archive(path)
    return TorchShard(path) if archived is None else ArchiveShard(path, archived)


class SafetensorsShard:
    """A safetensors file; tensors are views of one memory map."""

    def __init__(self, path: Path) -> None:
        """Let the safetensors library judge the header, then map the data behind it."""
        self.path = path
        self._check(path)
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header: dict[str, dict[str, Any]] = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        self._header = header
        self._start = 8 + header_bytes

    @staticmethod
    def _check(path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                file.keys()
        except (SafetensorError, OSError) as failure:
            raise CheckpointError(
                f"{path}: not a whole safetensors file ({failure}); copy or download it again"
            ) from failure

    def infos(self) -> dict[str, TensorInfo]:
        """What the file holds."""
        return {name: self._info(name, entry) for name, entry in self._header.items()}

    def _info(self, name: str, entry: Mapping[str, Any]) -> TensorInfo:
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(f"{self.path}: tensor '{name}' has type {entry['dtype']}")
        return TensorInfo(name=name, dtype=dtype, shape=tuple(entry["shape"]), file=self.path.name)

    def read(self, name: str) -> Array:
        """A read-only view of one tensor in its stored dtype."""
        entry = self._header[name]
        info = self._info(name, entry)
        start, stop = entry["data_offsets"]
        if start == stop:
            return np.zeros(info.shape, numpy_dtype(info.dtype))
        return _mapped(self.path, self._start + start, stop - start, info)


def _mapped(path: Path, start: int, size_bytes: int, info: TensorInfo | ArchivedTensor) -> Array:
    raw = np.memmap(path, np.uint8, "r", start, (size_bytes,))
    values: Array = raw.view(numpy_dtype(info.dtype)).reshape(info.shape)
    return values


class ArchiveShard:
    """A `torch.save` file of a state dict, memory-mapped without torch.

    State dicts within it are read as one, names joined by dots, as Prismatic's are saved.
    """

    def __init__(self, path: Path, archived: Mapping[str, Any]) -> None:
        """`archived` is what `read_archive` found."""
        self.path = path
        self._tensors = _flat_state(path, archived, ArchivedTensor)

    def infos(self) -> dict[str, TensorInfo]:
        """What the file holds."""
        return {
            name: TensorInfo(name=name, dtype=one.dtype, shape=one.shape, file=self.path.name)
            for name, one in self._tensors.items()
        }

    def read(self, name: str) -> Array:
        """A read-only view of one tensor in its stored dtype."""
        found = self._tensors[name]
        if not found.size_bytes:
            return np.zeros(found.shape, numpy_dtype(found.dtype))
        return _mapped(self.path, found.start, found.size_bytes, found)


class TorchShard:
    """A `torch.save` file that torch must read: with weights_only, and mapped where it is a zip.

    See `ArchiveShard`.
    """

    def __init__(self, path: Path) -> None:
        """Map the file; nothing in it is executed."""
        self.path = path
        self._tensors = self._load(path)
        self._mapped = _is_zip(path)
        self._last: torch.Tensor | None = None

    @staticmethod
    def _load(path: Path) -> dict[str, torch.Tensor]:
        import torch

        try:
            # Files older than torch 1.6 are no zip archives and cannot be mapped.
            mapped = _is_zip(path)
            state = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
        except pickle.UnpicklingError as failure:
            raise CheckpointError(
                f"{path}: the pickle asks for more than tensors and was not executed "
                f"({_first_line(failure)}); convert it to safetensors where you trust it"
            ) from failure
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as failure:
            raise CheckpointError(
                f"{path}: not a whole torch file ({_first_line(failure)}); "
                "copy or download it again"
            ) from failure
        return _flat_state(path, state, torch.Tensor)

    def infos(self) -> dict[str, TensorInfo]:
        """What the file holds."""
        return {
            name: TensorInfo(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                file=self.path.name,
            )
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> Array:
        """A view of one tensor in its stored dtype; the one read before goes back to the file."""
        import torch

        if self._last is not None:
            forget_pages(self._last.data_ptr(), self._last.nbytes)
        stored = self._tensors[name].detach()
        tensor = stored.contiguous()
        # A copy is not the file's: dropped, it would read as zeros.
        is_view = tensor.data_ptr() == stored.data_ptr()
        self._last = tensor if self._mapped and is_view else None
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(numpy_dtype("bfloat16"))
        return tensor.numpy()


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _flat_state(path: Path, state: object, kind: type[T], before: str = "") -> dict[str, T]:
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, needed: a state dict")
    found: dict[str, T] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            found |= _flat_state(path, value, kind, f"{before}{name}.")
        elif isinstance(value, kind):
            found[f"{before}{name}"] = value
        else:
            raise CheckpointError(
                f"{path}: entry '{before}{name}' is a {type(value).__name__}, needed: a tensor"
            )
    return found


def _first_line(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0][:200] if lines else type(failure).__name__
