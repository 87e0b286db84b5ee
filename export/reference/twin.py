"""A trained twin: a small model in the layout of a published family."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mllm_export.catalog import Catalog
from mllm_export.config import Config, read_json_object
from mllm_export.errors import UnsupportedModelError
from mllm_export.export.reference.spec import DecoderSizes, ReferenceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A model's tensors by the names that its own modules give them."""

    tower: dict[str, Tensor]
    projector: dict[str, Tensor]
    decoder: dict[str, Tensor]


class Twin(Protocol):
    """One file in export/twins: what is trained, and how its files are laid out."""

    title: str
    """The name that the family's authors use."""
    decoder_title: str
    """The name of the language model's kind, for the card."""
    layout: str
    """A sentence for the card: how the weights are stored."""
    model_type: str
    """What its config.json says."""
    eos: str
    """Ends every answer."""
    writes_questions: bool
    """Whether it ships the question sets; the others are scored on the same ones."""
    spec: ReferenceSpec

    def new_projector(self, spec: ReferenceSpec) -> nn.Module:
        """Tower features to image embeddings, freshly initialised."""

    def new_decoder(self, sizes: DecoderSizes) -> PreTrainedModel:
        """The language model, freshly initialised."""

    def write_tokenizer(self, folder: Path, vocab: int) -> None:
        """Train a tokenizer of at most `vocab` pieces and write its published files."""

    def open_tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        """The tokenizer, as the family's own loader opens it."""

    def write(self, parts: Parts, spec: ReferenceSpec, out: Path) -> None:
        """Write `checkpoint/` and what lies beside it; tensors are rounded to bfloat16."""

    def read_spec(self, folder: Path) -> ReferenceSpec:
        """The sizes of a written checkpoint, from its files alone."""

    def read_parts(self, folder: Path) -> Parts:
        """The tensors of a written checkpoint."""

    def processor_folder(self, folder: Path) -> Path:
        """Where a written checkpoint has its preprocessor_config.json."""


DEFAULT_TWIN = "mobilevlm"
TWINS: Catalog[Twin] = Catalog("mllm_export.export.twins", "TWIN", "twin")


def twin_of(folder: Path) -> Twin:
    """The twin whose layout a written checkpoint has.

    Raises: UnsupportedModelError when config.json names another model.
    """
    file = folder / "config.json"
    model_type = Config(read_json_object(file), str(file)).text("model_type")
    for name in TWINS.names():
        if TWINS[name].model_type == model_type:
            return TWINS[name]
    known = ", ".join(TWINS[name].model_type for name in TWINS.names())
    raise UnsupportedModelError(
        f"{file}: model_type '{model_type}' is no trained twin's (known: {known})"
    )


def split_parts(state: dict[str, Tensor], tower: str, projector: str) -> Parts:
    """A checkpoint's tensors by part; what stands under neither prefix is the decoder's."""
    found: dict[str, dict[str, Tensor]] = {tower: {}, projector: {}, "": {}}
    for name, value in state.items():
        prefix = next((p for p in (tower, projector) if name.startswith(p)), "")
        found[prefix][name.removeprefix(prefix)] = value
    return Parts(tower=found[tower], projector=found[projector], decoder=found[""])


def join_parts(parts: Parts, tower: str, projector: str) -> dict[str, Tensor]:
    """The checkpoint's tensors by their published names, in bfloat16."""
    named = dict(parts.decoder)
    named |= {tower + name: value for name, value in parts.tower.items()}
    named |= {projector + name: value for name, value in parts.projector.items()}
    return {name: value.detach().bfloat16().contiguous() for name, value in named.items()}
