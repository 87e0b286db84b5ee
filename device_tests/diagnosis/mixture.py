"""The model with some of its parts exported and the others original, all run by one code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm_export.device_tests.diagnosis.kv_cache import RoundedCache
from mllm_export.device_tests.diagnosis.walked import Walked
from mllm_export.device_tests.greedy import Greedy, draft_tokens
from mllm_export.device_tests.originals import Array, Original
from mllm_export.device_tests.pictures import Picture
from mllm_export.device_tests.reference import Floats, Forced, Reader
from mllm_export.device_tests.samples import Question
from mllm_export.device_tests.stored import Stored, as_published
from mllm_export.device_tests.subject import Answer, Subject
from mllm_export.device_tests.tower_file import TowerSeams
from mllm_export.errors import CheckError

Parts = frozenset[str]
"""Names of the parts that are exported."""

SWAPPED: tuple[str, ...] = (
    "preprocessing",
    "prompt",
    "tower",
    "projector",
    "decoder",
    "head",
    "kv",
)
"""Parts that the original's code can run in either form."""

EVERY: Parts = frozenset(SWAPPED)
NONE: Parts = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A question and the text that is put behind the prompt: the original's answer and more."""

    question: Question
    pictures: tuple[Picture, ...]
    ids: tuple[int, ...]
    """The original's prompt."""
    own_ids: tuple[int, ...]
    """The export's prompt."""
    answer: Greedy
    """The original's."""
    follow: tuple[int, ...]
    """Its answer with the stop token, then a further turn."""

    def tokens(self, stop_id: int) -> tuple[int, ...]:
        """The original's answer with its stop token."""
        return draft_tokens(Answer(ids=self.answer.ids, finished=self.answer.finished), stop_id)


def part_of(name: str) -> str:
    """The part that a tensor of the decoder's file belongs to, by its name in GGUF."""
    return "head" if name.startswith("output") else "decoder"


class Mixture:
    """Embeddings and logits for any choice of exported parts; what was computed once is kept."""

    def __init__(
        self, walked: Walked, subject: Subject, graph: TowerSeams, decoder: DecoderWeights, kv: str
    ) -> None:
        """`kv` is the type of the export's KV cache."""
        self.walked = walked
        self.subject = subject
        self.graph = graph
        self.decoder = decoder
        self.stop_ids = walked.reference.stop_ids
        self._cache = RoundedCache(kv)
        self._seam = graph.entry(("projector.",))
        self._kept: dict[tuple[str, ...], Floats] = {}

    @property
    def is_cut(self) -> bool:
        """Whether the graph has one value between tower and projector."""
        return bool(self._seam)

    def pixels(self, picture: Picture, exported: bool) -> Floats:
        """Shapes: f32[N, 3, S, S]."""

        def compute() -> Floats:
            if exported:
                return self.subject.pixels(picture)
            with picture.open() as image:
                return self.walked.reference.pixels(image)

        return self._once(("pixels", picture.name, str(exported)), compute)

    def features(self, picture: Picture, parts: Parts) -> Floats:
        """What enters the projector. Shapes: f32[N, tokens, width]."""
        exported = "tower" in parts
        key = ("features", picture.name, *sorted(parts & {"preprocessing", "tower"}))

        def compute() -> Floats:
            pixels = self.pixels(picture, "preprocessing" in parts)
            if not exported:
                return self.walked.features(pixels)
            tiles = [self.graph.states([self._seam], tile[None])[0] for tile in pixels]
            return np.stack([tile.reshape(-1, tile.shape[-1]) for tile in tiles])

        return self._once(key, compute)

    def embeds(self, picture: Picture, parts: Parts) -> Floats:
        """What enters the decoder. Shapes: f32[N * T, D]."""
        relevant = parts & {"preprocessing", "tower", "projector"}
        key = ("embeds", picture.name, *sorted(relevant))
        return self._once(key, lambda: self._projected(picture, relevant))

    def _projected(self, picture: Picture, parts: Parts) -> Floats:
        features = self.features(picture, parts)
        if "projector" not in parts:
            return self.walked.project(features, self.pixels(picture, "preprocessing" in parts))
        shape = self._seam_shape(picture)
        tiles = [self.graph.embed_from(self._seam, tile.reshape(shape)) for tile in features]
        return np.concatenate(tiles)

    def _seam_shape(self, picture: Picture) -> tuple[int, ...]:
        tile = self.pixels(picture, exported=False)[:1]
        return self._once(("seam",), lambda: self.graph.states([self._seam], tile)[0]).shape

    def _once(self, key: tuple[str, ...], compute: Callable[[], Floats]) -> Floats:
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def forced(self, case: Case, parts: Parts) -> Forced:
        """The whole sequence: a row for each token of `follow`."""
        prompt = case.own_ids if "prompt" in parts else case.ids
        images = tuple(self.embeds(picture, parts) for picture in case.pictures)
        return Forced(ids=(*prompt, *case.follow[:-1]), images=images, rows=len(case.follow))

    def rows(self, cases: Iterable[Case], parts: Parts) -> list[Floats]:
        """Shapes: f32[rows, V] for each case."""
        return self.logits([self.forced(case, parts) for case in cases], parts)

    def logits(self, sequences: Sequence[Forced], parts: Parts) -> list[Floats]:
        """The decoder with its exported parts. Shapes: f32[rows, V] for each sequence."""
        return self.with_weights(sequences, self.decoder.reader(parts), "kv" in parts)

    def with_weights(
        self, sequences: Sequence[Forced], weights: Reader | None, rounded: bool
    ) -> list[Floats]:
        """The original's code with these weights, and the export's KV type if `rounded`."""
        from mllm_export.device_tests.references._watch import watching

        layers = self.walked.decoder_layers()

        def give_cache(prefix: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not rounded or prefix not in layers:
                return None
            return args, {**kwargs, "past_key_values": self._cache}

        with watching(give_cache):
            return self.walked.reference.logits(sequences, weights)


class DecoderWeights:
    """The decoder's tensors under their published names, stored or original."""

    def __init__(
        self, stored: dict[str, Stored], originals: dict[str, Original], resident: bool
    ) -> None:
        """`resident` keeps what was dequantized.

        Raises: CheckError for a tensor that is missing or of another shape.
        """
        self.originals = originals
        self.names = {one.source: name for name, one in originals.items()}
        for name, original in originals.items():
            if name not in stored:
                raise CheckError(
                    f"the decoder's file has no tensor '{name}' ({original.source}), so the "
                    "original's code cannot run its weights; run 'check' for the whole list"
                )
            if tuple(stored[name].shape) != tuple(original.shape):
                raise CheckError(
                    f"tensor '{name}' is {list(stored[name].shape)}, the original "
                    f"{list(original.shape)}; was the bundle built from this checkpoint?"
                )
        self._stored = as_published(stored, originals)
        self._resident = resident
        self._kept: dict[str, Array] = {}

    def reader(self, parts: Parts) -> Reader | None:
        """Weights with `decoder` or `head` exported; None for the original's own."""
        if not parts & {"decoder", "head"}:
            return None
        return self.choosing(lambda name: part_of(name) in parts)

    def choosing(self, is_stored: Callable[[str], bool]) -> Reader:
        """Stored values where `is_stored` takes the name in GGUF, else the original's."""

        def read(source: str) -> Array:
            name = self.names[source]
            return self._own(source) if is_stored(name) else self.originals[name].read()

        return read

    def _own(self, source: str) -> Array:
        if not self._resident:
            return self._stored(source)
        if source not in self._kept:
            self._kept[source] = self._stored(source)
        return self._kept[source]
