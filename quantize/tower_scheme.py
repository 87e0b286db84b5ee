"""How tensors of the tower and the projector can be stored: a catalog of data files."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from math import prod
from typing import Literal

from mllm_export.catalog import unknown
from mllm_export.errors import RecipeError
from mllm_export.records import from_plain, record
from mllm_export.toml import read_toml

_PACKAGE = "mllm_export.quantize.tower_schemes"

QUANTIZED, SCALE, ZERO_POINT = "_quantized", "_scale", "_zero_point"
"""Endings of what stands for an 8-bit weight. Source: onnxruntime.quantization, 1.20 on."""

BLOCKS, BLOCK_SCALES, BLOCK_ZEROS = "_Q4", "_scales", "_zero_points"
"""Endings of what stands for a 4-bit weight.

Source: onnxruntime.quantization.matmul_nbits_quantizer, DefaultWeightOnlyQuantizer.
"""

COREML_ALONE = ("w8", "pal4", "pal6")
"""Words that only a Core ML tower knows; w4g32 and the floats it shares with ONNX."""

ENDINGS = (QUANTIZED, SCALE, ZERO_POINT, BLOCKS, BLOCK_SCALES, BLOCK_ZEROS)

Shape = tuple[int, ...]


@record
class StoredPart:
    """One of the initializers that stand for a tensor."""

    ending: str
    """Behind the tensor's name."""
    shape: Shape
    size_bytes: int
    scheme: str
    note: str = ""


@record
class TowerScheme:
    """One file of quantize/tower_schemes."""

    name: str
    description: str
    kind: Literal["float", "int8", "blocks"]
    """int8: weights and activations in 8 bits; blocks: weights in blocks with a scale each."""
    bits: int
    """Of a weight."""
    static: bool = False
    """int8: whether activations have a range that was calibrated before."""
    block: int = 0
    """blocks: how many values of a column share a scale."""
    symmetric: bool = True
    """blocks: whether the steps lie around zero."""

    @property
    def takes_products_alone(self) -> bool:
        """Whether only the weight of a matrix product can be stored so."""
        return self.kind != "float"

    def parts(self, shape: Shape) -> tuple[StoredPart, ...]:
        """What stands for a tensor of that shape; for a product [in, out], as MatMul takes it.

        Source: ONNX Runtime, ContribOperators.md, MatMulNBits, for the shapes of blocks.
        """
        if self.kind == "float":
            size_bytes = self.bits // 8 * prod(shape)
            return (StoredPart(ending="", shape=shape, size_bytes=size_bytes, scheme=self.name),)
        rows, columns = shape
        return self._int8(shape, columns) if self.kind == "int8" else self._blocks(rows, columns)

    def _int8(self, shape: Shape, columns: int) -> tuple[StoredPart, ...]:
        return (
            StoredPart(ending=QUANTIZED, shape=shape, size_bytes=prod(shape), scheme=self.name),
            _scales(SCALE, (columns,), "step of each output column"),
            StoredPart(
                ending=ZERO_POINT,
                shape=(columns,),
                size_bytes=columns,
                scheme=self.name,
                note="zero of each output column",
            ),
        )

    def _blocks(self, rows: int, columns: int) -> tuple[StoredPart, ...]:
        count = -(-rows // self.block)
        half = self.block // 2
        values = StoredPart(
            ending=BLOCKS,
            shape=(columns, count, half),
            size_bytes=columns * count * half,
            scheme=self.name,
            note="" if rows % self.block == 0 else f"the last block is filled up from {rows} rows",
        )
        found = (values, _scales(BLOCK_SCALES, (columns, count), "step of each block"))
        if self.symmetric:
            return found
        zeros = (columns, -(-count // 2))
        return (
            *found,
            StoredPart(
                ending=BLOCK_ZEROS,
                shape=zeros,
                size_bytes=prod(zeros),
                scheme=self.name,
                note="zero of each block, two in a byte",
            ),
        )


def _scales(ending: str, shape: Shape, note: str) -> StoredPart:
    return StoredPart(
        ending=ending, shape=shape, size_bytes=4 * prod(shape), scheme="f32", note=note
    )


def tower_scheme_names() -> list[str]:
    """The schemes there are."""
    entries = files(_PACKAGE).iterdir()
    return sorted(e.name[:-5] for e in entries if e.name.endswith(".toml"))


@cache
def tower_scheme(name: str) -> TowerScheme:
    """A scheme by name.

    Raises: RecipeError for an unknown name, with the near ones.
    """
    require_tower_scheme(name, "")
    if name in COREML_ALONE:
        raise RecipeError(
            f"tower scheme '{name}' is for Core ML towers alone; choose a target such as "
            f"macos-arm64, or one of {', '.join(tower_scheme_names())}"
        )
    table = read_toml(files(_PACKAGE) / f"{name}.toml", RecipeError)
    return from_plain(TowerScheme, {"name": name, **table}, f"{name}.toml", RecipeError)


def require_tower_scheme(scheme: str, where: str) -> None:
    """Raise RecipeError, with the near names, for a word that is no tower scheme."""
    known = [*tower_scheme_names(), *COREML_ALONE]
    if scheme not in known:
        at = f"{where}: " if where else ""
        raise RecipeError(f"{at}{unknown('tower scheme', scheme, known)}")
