"""An encoder alone: its spec, its plan and its bundle, where no language model answers."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Literal

from mllm_export.bundle import (
    EMBEDDER,
    MANIFEST,
    BundleFile,
    FileRole,
    check_file,
    refuse_growing,
)
from mllm_export.errors import BundleError, SpecError
from mllm_export.plan import ArtifactPlan
from mllm_export.records import from_plain, record
from mllm_export.source_file import SourceFile
from mllm_export.spec import EncoderSpec

SCHEMA = 2
"""1 had no patches."""

TOKENIZER_FILE = "tokenizer/tokenizer.json"

PATCHES, TEXT_EMBEDS = "patches", "text_embeds"
"""What the image tower gives beside `IMAGE_EMBEDS`, and what the text tower gives."""


@record
class TextTowerSpec:
    """A text tower: ids [1, context_tokens] to an embedding [1, embed_width]."""

    kind: str
    """A file in export/text_towers."""
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]
    norm_eps: float
    vocab: int
    context_tokens: int
    embed_width: int
    bos_id: int | None
    eos_id: int
    pad_id: int

    def __post_init__(self) -> None:
        """Check that the sizes fit each other and the ids the table."""
        if self.width % self.heads:
            raise SpecError(f"text width {self.width} is not a multiple of {self.heads} heads")
        ids = [i for i in (self.bos_id, self.eos_id, self.pad_id) if i is not None]
        if max(ids) >= self.vocab:
            raise SpecError(f"special id {max(ids)} in a vocabulary of {self.vocab}")


@record
class EmbedderSpec:
    """Images, and texts where there is a text tower, to embeddings in one space.

    Of an image also what each patch became: see `patch_shape`, and export/heads for what it is.
    """

    family: str
    """A file in export/embedders."""
    name: str
    encoder: EncoderSpec
    head: str
    """A file in export/heads."""
    embed_width: int
    text: TextTowerSpec | None
    score: Literal["softmax", "sigmoid"]
    """What turns similarities into probabilities: over the labels, or label by label."""
    template: str
    """The text of a label; `{}` stands for it."""

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Patches, row by row from the upper left, and the width of each; no class token."""
        return self.encoder.grid**2, self.encoder.width

    def __post_init__(self) -> None:
        """Check that both towers meet in one space."""
        if self.text is not None and self.text.embed_width != self.embed_width:
            raise SpecError(
                f"images are embedded in {self.embed_width} values, "
                f"texts in {self.text.embed_width}"
            )


@record
class EmbedderPlan:
    """Everything a build of an encoder alone needs besides the checkpoint's bytes."""

    spec: EmbedderSpec
    target: str
    recipe: str
    profile: str
    vision_engine: str
    """A file in runtimes/vision."""
    vision_preset: str
    artifacts: tuple[ArtifactPlan, ...]
    dropped: tuple[str, ...]
    device_memory_bytes: int

    @property
    def size_bytes(self) -> int:
        """Predicted size of all artifacts."""
        return sum(artifact.size_bytes for artifact in self.artifacts)


@record
class EmbedderManifest:
    """bundle.json of an encoder alone."""

    schema: int = SCHEMA
    job: Literal["embedder"] = "embedder"
    model: EmbedderSpec
    logit_scale: float
    """What cosines are multiplied by; the exponential is taken already."""
    logit_bias: float
    target: str
    recipe: str
    profile: str
    vision_engine: str = "onnx"
    """A file in runtimes/vision."""
    checked: Literal["passed", "unchecked"]
    files: tuple[BundleFile, ...]
    sources: tuple[SourceFile, ...]
    tools: tuple[tuple[str, str], ...]

    def path(self, folder: Path, role: FileRole) -> Path:
        """The file of that role, or the folder of an artifact of several.

        Raises: BundleError when there is none.
        """
        for file in self.files:
            if file.role == role:
                return folder / PurePosixPath(file.path).parts[0]
        raise BundleError(f"{folder} has no file of role '{role}'")


def is_embedder(folder: Path) -> bool:
    """Whether a bundle's folder holds an encoder alone; False where nothing can be read."""
    try:
        data = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("job") == EMBEDDER


def open_embedder(folder: Path, verify: bool = True) -> EmbedderManifest:
    """Read and verify the bundle of an encoder alone.

    Raises: BundleError for another kind or schema, or a file that is missing or changed.
    """
    refuse_growing(folder)
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as failure:
        raise BundleError(f"{path}: cannot be read ({failure})") from failure
    if not is_embedder(folder):
        raise BundleError(f"{folder} is no bundle of an encoder alone; open it with load()")
    manifest = from_plain(EmbedderManifest, data, str(path), BundleError)
    if manifest.schema != SCHEMA:
        raise BundleError(
            f"{path}: schema {manifest.schema}, this runtime reads {SCHEMA}; build the bundle again"
        )
    for file in manifest.files:
        check_file(folder, file, verify)
    return manifest
