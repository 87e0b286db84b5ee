"""An encoder alone on the device: pictures and texts to embeddings, labels to probabilities.

Needs numpy, Pillow and onnxruntime (on Apple's systems coremltools); for texts also `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mllm_export.embedder import (
    PATCHES,
    TEXT_EMBEDS,
    TOKENIZER_FILE,
    EmbedderManifest,
    TextTowerSpec,
    open_embedder,
)
from mllm_export.errors import EngineError
from mllm_export.runtimes.engines import VISION_ENGINES, Floats, GraphRun, VisionEngine
from mllm_export.runtimes.preprocess import Picture, preprocess
from mllm_export.runtimes.utf8 import utf8
from mllm_export.spec import IMAGE_EMBEDS


class TextIds:
    """Text to ids i64[1, context_tokens]: start, text cut to fit, end, padding."""

    def __init__(self, file: Path, spec: TextTowerSpec) -> None:
        """Raises: EngineError naming the extra when `tokenizers` is not installed."""
        try:
            from tokenizers import Tokenizer
        except ImportError as failure:
            raise EngineError(
                "texts need the library tokenizers; install with: pip install 'mllm-export[text]'"
            ) from failure
        self._spec = spec
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> list[int]:
        """One row of ids. Raises: EngineError for text that has no UTF-8 form."""
        utf8(text, f"the text {text!r}")  # of which `tokenizers` makes a TypeError
        spec = self._spec
        ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        start = [] if spec.bos_id is None else [spec.bos_id]
        row = [*start, *ids[: spec.context_tokens - len(start) - 1], spec.eos_id]
        return row + [spec.pad_id] * (spec.context_tokens - len(row))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFeatures:
    """What one run of the image tower gives."""

    embedding: Floats
    """f32[E], not normalised."""
    patches: Floats
    """f32[N, D], not normalised: the original's last hidden state, without class token.

    Row by row from the upper left, so that reshape(grid, grid, D) is a map of the square that
    preprocessing made of the picture. Behind the last norm where the original's are (SigLIP);
    CLIP and ViTamin norm the pooled token alone.
    """


class EmbedderSession:
    """An opened bundle of an encoder alone."""

    def __init__(
        self,
        folder: Path,
        manifest: EmbedderManifest,
        threads: int | None = None,
        engine: VisionEngine | None = None,
    ) -> None:
        """Use `open_embedder_session`, which verifies the files.

        `engine` stands in for the bundle's own, for checks where that does not run.
        """
        self.manifest = manifest
        self.spec = manifest.model
        opened = engine or VISION_ENGINES[manifest.vision_engine]
        image, text = self.spec.encoder.image, self.spec.text
        # ONNX Runtime takes 0 for as many threads as there are cores.
        self._image = opened.open_graph(manifest.path(folder, "tower"), image, threads or 0)
        self._text: GraphRun | None = None
        if text is not None:
            path = manifest.path(folder, "text_tower")
            self._text = opened.open_graph(path, None, threads or 0)
        self._ids = None if text is None else TextIds(folder / TOKENIZER_FILE, text)

    def preprocess(self, image: Picture) -> Floats:
        """A picture as pixels f32[1, 3, S, S]."""
        return preprocess(image, self.spec.encoder.image)

    def features(self, pixels: Floats) -> ImageFeatures:
        """Embedding and patches of pixels f32[1, 3, S, S], in one run.

        Raises: EngineError for NaN or Inf, and for a file that gives other outputs or shapes.
        """
        shapes = {IMAGE_EMBEDS: (self.spec.embed_width,), PATCHES: self.spec.patch_shape}
        made = _run(self._image, pixels, shapes)
        return ImageFeatures(embedding=made[IMAGE_EMBEDS], patches=made[PATCHES])

    def embed_patches(self, image: Picture) -> Floats:
        """A picture's patches f32[N, D]; see `ImageFeatures`."""
        return self.features(self.preprocess(image)).patches

    def embed_pixels(self, pixels: Floats) -> Floats:
        """Pixels f32[1, 3, S, S] to f32[E], not normalised."""
        return self.features(pixels).embedding

    def embed_image(self, image: Picture) -> Floats:
        """A picture as f32[E], not normalised."""
        return self.embed_pixels(self.preprocess(image))

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises: EngineError when the bundle has no text tower, or the text no UTF-8 form.
        """
        if self._ids is None:
            raise EngineError("this bundle embeds images only: its checkpoint has no text tower")
        return self._ids.encode(text)

    def embed_text(self, text: str) -> Floats:
        """A text as f32[E], not normalised. Raises: see `encode`."""
        ids = np.array([self.encode(text)], np.int64)
        assert self._text is not None, "encode refuses a bundle without a text tower"
        return _run(self._text, ids, {TEXT_EMBEDS: (self.spec.embed_width,)})[TEXT_EMBEDS]

    def scores(self, image: Floats, texts: Sequence[Floats]) -> Floats:
        """logit_scale * cosine + logit_bias of one image with each text. Shapes: f32[L]."""
        rows = np.stack([_unit(text) for text in texts])
        cosines = rows @ _unit(image)
        made = cosines * self.manifest.logit_scale + self.manifest.logit_bias
        return np.asarray(made, np.float32)

    def classify(
        self, image: Picture, labels: Sequence[str], template: str | None = None
    ) -> Floats:
        """A probability for each label. Shapes: f32[L]; they sum to 1 unless scored by sigmoid."""
        if not labels:
            raise EngineError("no labels were given; name at least one")
        form = self.spec.template if template is None else template
        texts = [self.embed_text(form.replace("{}", label)) for label in labels]
        scores = self.scores(self.embed_image(image), texts).astype(np.float64)
        if self.spec.score == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-scores)), np.float32)
        powers = np.exp(scores - scores.max())
        return np.asarray(powers / powers.sum(), np.float32)


def open_embedder_session(
    folder: str | Path, threads: int | None = None, verify: bool = True
) -> EmbedderSession:
    """Open a bundle of an encoder alone. Raises: BundleError, EngineError."""
    path = Path(folder)
    return EmbedderSession(path, open_embedder(path, verify), threads)


def _run(
    graph: GraphRun, values: npt.NDArray[Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Floats]:
    """Outputs by name, of the one picture or text."""
    made = {name: batch[0] for name, batch in graph(values).items()}
    found = {name: values.shape for name, values in made.items()}
    if found != shapes:
        raise EngineError(
            f"the graph gives {_told(found)}, the spec needs {_told(shapes)}; is the file "
            "another model's?"
        )
    if not all(np.isfinite(values).all() for values in made.values()):
        raise EngineError("the graph gave NaN or Inf; did the bundle pass its checks?")
    return made


def _told(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))


def _unit(row: Floats) -> Floats:
    return np.asarray(row / np.linalg.norm(row), np.float32)
