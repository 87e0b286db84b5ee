"""A model family: how a published checkpoint is recognised, read and covered."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from mllm_export.catalog import Catalog
from mllm_export.checkpoint import Checkpoint, Companion
from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.near_miss import near_miss
from mllm_export.records import record
from mllm_export.spec import ModelSpec
from mllm_export.weights import Dropped, WeightMap


@record
class Reading:
    """All that is known of a checkpoint before a weight is read."""

    spec: ModelSpec
    weights: WeightMap
    uses_tower_folder: bool
    """Whether tower tensors come from the tower's own folder."""
    chat_template: str
    """Jinja, as GGUF and transformers keep it."""
    notes: tuple[str, ...] = ()
    """What a user should know: defaults taken, parts ignored."""
    companions: tuple[Companion, ...] = ()
    """Other folders whose tensors are taken."""
    tokenizer_folder: Companion | None = None
    """Where the tokenizer is; None: in the checkpoint's own folder."""

    @property
    def folders(self) -> tuple[Companion, ...]:
        """Every folder beside the checkpoint's that the export depends on."""
        one = self.tokenizer_folder
        return (*self.companions, *((one,) if one is not None else ()))

    def tokenizer_path(self, checkpoint: Checkpoint) -> Path:
        """Folder of the tokenizer's files."""
        one = self.tokenizer_folder
        return checkpoint.path if one is None else checkpoint.companion(one).path


@record
class TinyFolder:
    """A folder of a small checkpoint beside the model's own."""

    companion: Companion
    config: dict[str, object]


@record
class TinyModel:
    """A small checkpoint of true structure: what its config.json files hold."""

    config: dict[str, object]
    tower_name: str
    """Folder of the vision tower, beside the checkpoint; empty for a model without one, whose
    preprocessor_config.json stands beside its own config."""
    tower_config: dict[str, object]
    preprocessor: dict[str, object]
    tokenizer: str = "sentencepiece"
    """A file in export/tokenizers."""
    tokenizer_class: str = ""
    """The published class, where a kind of tokenizer has several."""
    folders: tuple[TinyFolder, ...] = ()
    """Beside the checkpoint's own; the tokenizer is in the one without weights, if there is one."""
    file: str = ""
    """Where all of the checkpoint's own tensors stand; empty: in transformers' files."""
    nesting: int = 0
    """How many parts of a tensor's name are state dicts of their own there."""
    copies: tuple[tuple[str, str], ...] = ()
    """Tensors that are stored a second time: the name, and the name of what it repeats."""


class Family(Protocol):
    """One file in export/families."""

    title: str
    """The name the authors use."""

    def claims(self, config: Config) -> bool:
        """Whether a config.json is this family's."""

    def read(self, checkpoint: Checkpoint) -> Reading:
        """Spec and weight map from the configs; raises UnsupportedModelError naming a part."""

    def tiny(self) -> TinyModel:
        """Configs of a small twin of true structure."""


FAMILIES: Catalog[Family] = Catalog("mllm_export.export.families", "FAMILY", "family")


def identify(checkpoint: Checkpoint) -> Family:
    """The family that claims the checkpoint.

    Raises: UnsupportedModelError when none or several do.
    """
    config = checkpoint.config
    claimed = [name for name in FAMILIES.names() if FAMILIES[name].claims(config)]
    if len(claimed) == 1:
        return FAMILIES[claimed[0]]
    if claimed:
        raise UnsupportedModelError(f"{config.file}: claimed by {' and '.join(claimed)}")
    raise UnsupportedModelError(
        f"{config.file}: no family known here claims it (known: {', '.join(FAMILIES.names())}): "
        f"{near_miss(config)}"
    )


def read_spec(checkpoint: Checkpoint) -> Reading:
    """Recognise and read a checkpoint; no weight is touched.

    Raises: see `identify`; CheckpointError where --vision-tower names what the model does not have.
    """
    reading = identify(checkpoint).read(checkpoint)
    _require_named(checkpoint, reading)
    return reading


def _require_named(checkpoint: Checkpoint, reading: Reading) -> None:
    names = [one.name for one in reading.folders]
    if isinstance(checkpoint.asked, tuple):
        wrong = next((name for name, _ in checkpoint.asked if name not in names), None)
        if wrong is not None:
            parts = f"parts of their own: {', '.join(names)}" if names else "one tower: give DIR"
            raise CheckpointError(
                f"--vision-tower {wrong}=...: this model has no '{wrong}'; it has {parts}"
            )
    elif checkpoint.asked is not None and names:
        raise CheckpointError(
            f"--vision-tower {checkpoint.asked}: this model has several parts of their own; say "
            f"which: {', '.join(f'{name}=DIR' for name in names)}"
        )


def cover(checkpoint: Checkpoint, reading: Reading) -> tuple[Dropped, ...]:
    """Hold the weight map against the files; returns what is left out and why.

    Raises: CheckpointError naming the first tensor that is missing, misshapen or left over.
    """
    return reading.weights.resolve(checkpoint.shapes(reading.uses_tower_folder, reading.companions))
