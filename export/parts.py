"""The protocols of the catalogs: what a file in encoders, projectors, decoders must offer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mllm_export.catalog import Catalog
from mllm_export.config import Config
from mllm_export.export.clip_images import Fit
from mllm_export.records import record
from mllm_export.spec import (
    DecoderSpec,
    EncoderSpec,
    FusionSpec,
    ImageSpec,
    ProjectorSpec,
    TokenizerSpec,
)
from mllm_export.weights import Drop, Shape

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mllm_export.quantize.method import Fold

Array = npt.NDArray[Any]
Reader = Callable[[str], Array]
"""Published name of a parameter (without the part's prefix) to its stored values."""


class Encoder(Protocol):
    """A vision tower. Parameter names are the published ones, below the family's prefix."""

    prefixes: tuple[str, ...]
    """What may stand before the parameters' names in a published file, below the family's
    prefix: open_clip writes `visual.trunk.` where timm writes nothing. The first is usual."""

    def claims(self, config: Config) -> bool:
        """Whether a tower's config.json (the whole file) is this encoder's."""

    def image(self, config: Config, fit: Fit) -> ImageSpec:
        """The authors' preprocessing at the size the config names, for folders that hold none."""

    def read_spec(
        self, config: Config, image: ImageSpec, select_layer: int, keep_prefix: bool
    ) -> EncoderSpec:
        """Sizes from the tower's own config (the object that holds hidden_size)."""

    def parameters(self, spec: EncoderSpec) -> Mapping[str, Shape]:
        """What the export needs: name to shape."""

    def drops(self, spec: EncoderSpec) -> tuple[Drop, ...]:
        """Patterns of published tensors that the selected feature does not use."""

    def apply(self, spec: EncoderSpec, weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        """Pixels f32[1, 3, S, S] to features f32[1, tokens_out, width].

        `weights` are the parameters by published name, laid out as `export.stored` says.
        """

    def tiny(self) -> EncoderSpec:
        """A small twin of true structure."""


class Fusion(Protocol):
    """How features of several encoders become one."""

    def spec(self, encoders: Sequence[EncoderSpec]) -> FusionSpec:
        """Sizes; raises SpecError where the encoders' features do not fit each other."""

    def apply(self, features: Sequence[Tensor]) -> Tensor:
        """Features f32[1, T, width] of each encoder to f32[1, tokens_out, out_width]."""


class Projector(Protocol):
    """A projector between tower and decoder."""

    def spec(self, in_width: int, out_width: int, tokens_in: int) -> ProjectorSpec:
        """Sizes; raises SpecError where the projector cannot take them."""

    def parameters(self, spec: ProjectorSpec) -> Mapping[str, Shape]:
        """Published name (below the family's prefix) to shape."""

    def apply(self, spec: ProjectorSpec, weights: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Features f32[1, tokens_in, in_width] to f32[1, tokens_out, out_width]; see Encoder."""


@record
class GgufTensor:
    """One tensor of the decoder's file."""

    name: str
    """GGUF name."""
    sources: tuple[str, ...]
    """Published names."""
    shape: Shape
    """Row-major shape after `transform`."""
    transform: Callable[[list[Array]], Array]
    """The sources' stored values to the stored tensor's values."""
    aliases: tuple[str, ...] = ()
    """Other GGUF names it answers to in a recipe: a tied embedding is `output.weight` too."""
    least: str = ""
    """A layout that no recipe's mixture goes below; empty: any will do."""


@record
class GgufField:
    """One metadata key; `kind` is the name of a gguf.GGUFValueType, ARRAY for lists."""

    key: str
    value: object
    kind: str


class Decoder(Protocol):
    """A language model that llama.cpp runs."""

    def read_spec(self, config: Config, names: Collection[str] = ()) -> DecoderSpec:
        """Sizes from the published config.

        `names` are the checkpoint's tensors below the family's prefix, by which a kind with
        several published namings tells them apart; none where no weights are there yet.
        """

    def parameters(self, spec: DecoderSpec) -> Mapping[str, Shape]:
        """Published name to shape."""

    def drops(self, spec: DecoderSpec) -> tuple[Drop, ...]:
        """Patterns of published tensors that llama.cpp recomputes."""

    def tensors(self, spec: DecoderSpec) -> tuple[GgufTensor, ...]:
        """The file's tensors in upstream's order."""

    def metadata(self, spec: DecoderSpec) -> tuple[GgufField, ...]:
        """Architecture and size keys, as upstream's converter writes them."""

    def tiny(self) -> DecoderSpec:
        """A small twin of true structure."""


@runtime_checkable
class Foldable(Protocol):
    """A decoder that says where scales per channel may go without changing what it computes."""

    def folds(self, spec: DecoderSpec, layer: int | None) -> tuple[Fold, ...]:
        """Of one layer, by published names; None: of what stands behind the layers."""


class Tokenizer(Protocol):
    """A kind of tokenizer: how it is read and what llama.cpp needs of it."""

    files: tuple[str, ...]
    """What a published tokenizer of this kind may consist of; a bundle takes those there are."""

    def read_spec(self, folder: Path, config: Config) -> TokenizerSpec:
        """Files and special ids of the checkpoint's tokenizer."""

    def metadata(self, folder: Path, spec: TokenizerSpec, vocab: int) -> tuple[GgufField, ...]:
        """tokenizer.ggml.* keys; rows past the tokenizer's own are padding."""

    def write_random(self, folder: Path, rows: int, published: str = "") -> None:
        """Published files of a small tokenizer for a model of so many rows, for tests.

        `published` is its class in tokenizer_config.json, where a kind has several.
        """


ENCODERS: Catalog[Encoder] = Catalog("mllm_export.export.encoders", "ENCODER", "encoder")
FUSIONS: Catalog[Fusion] = Catalog("mllm_export.export.fusions", "FUSION", "fusion")
PROJECTORS: Catalog[Projector] = Catalog("mllm_export.export.projectors", "PROJECTOR", "projector")
DECODERS: Catalog[Decoder] = Catalog("mllm_export.export.decoders", "DECODER", "decoder")
TOKENIZERS: Catalog[Tokenizer] = Catalog("mllm_export.export.tokenizers", "TOKENIZER", "tokenizer")


def as_float32(values: Array) -> npt.NDArray[np.float32]:
    """Stored values as float32; exact for float16, bfloat16 and float32."""
    return np.asarray(values, dtype=np.float32)
