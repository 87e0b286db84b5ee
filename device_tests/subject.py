"""What is checked: an opened bundle, asked only through the session's public methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from mllm_export.bundle import Bundle
from mllm_export.device_tests.fed import SeenDecoder
from mllm_export.device_tests.kept_embeds import KeptEmbeds
from mllm_export.device_tests.one_part import OnePart, PartDecoder, PartTower
from mllm_export.device_tests.pictures import Picture
from mllm_export.device_tests.reference import Floats

if TYPE_CHECKING:
    from PIL import Image


_LARGE_BYTES = 256 << 20
"""Bundles from this size on are opened part by part."""

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""Stands in a text for each byte of a character that was not finished."""


class StepLike(Protocol):
    """One generated token."""

    @property
    def token_id(self) -> int:
        """The token, a stop token included."""

    @property
    def text(self) -> str:
        """Text that became certain with this token."""

    @property
    def finish(self) -> str:
        """Why this is the last step; empty when it is not."""


class SessionLike(Protocol):
    """The public methods of `mllm_export.runtimes.session.Session` that the checks call."""

    def preprocess(self, image: Image.Image) -> Floats:
        """Pixels f32[N, 3, S, S]."""

    def embed(self, image: Floats) -> Floats:
        """Pixels to embeddings f32[T, D]."""

    def encode(self, prompt: str, images: int = 1) -> list[int]:
        """The whole conversation template as ids."""

    def logits(self, prompt: Sequence[int], images: Sequence[Floats]) -> Floats:
        """f32[positions, V] over the spliced sequence."""

    def generate(
        self, prompt: str | Sequence[int], images: Sequence[Floats], *, max_tokens: int
    ) -> Iterator[StepLike]:
        """Stream a greedy answer."""

    def close(self) -> None:
        """Give the memory back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Ids of a greedy answer without the stop token, and whether that token ended it."""

    ids: tuple[int, ...]
    finished: bool
    """False when it was cut: at the number of tokens asked for, or at a stop string."""
    text: str = ""
    """As the user was shown it."""


class Subject:
    """A session with what was computed once kept for the next check."""

    def __init__(
        self,
        session: SessionLike,
        rest: Callable[[], None] = lambda: None,
        decoder: SeenDecoder | None = None,
    ) -> None:
        """Nothing runs before it is asked for; `rest` gives back what can be opened again.

        `decoder` is the session's, where it can be watched.
        """
        self.session = session
        self.rest = rest
        self.decoder = decoder
        self._embeds = KeptEmbeds()

    def close(self) -> None:
        """Give the session's memory back."""
        self.session.close()

    def pixels(self, picture: Picture) -> Floats:
        """The picture through the export's own preprocessing."""
        with picture.open() as image:
            return self.session.preprocess(image)

    def embeds(self, picture: Picture) -> Floats:
        """The picture through the export's own preprocessing and tower; kept by its name."""
        if picture.name not in self._embeds:
            self._embeds.put(picture.name, self.session.embed(self.pixels(picture)))
        return self._embeds[picture.name]

    def prepare(self, pictures: Iterable[Picture]) -> None:
        """Embed all of them now, while the tower is open; older ones go where they are much."""
        self._embeds.trim()
        for picture in pictures:
            self.embeds(picture)

    def embed_pixels(self, pixels: Floats) -> Floats:
        """The tower alone, on pixels of somebody else."""
        return self.session.embed(pixels)

    def rows(self, ids: Sequence[int], images: Sequence[Floats], rows: int) -> Floats:
        """Logits of the last positions. Shapes: f32[rows, V]."""
        return self.session.logits(ids, images)[-rows:]

    def answer(
        self, prompt: str | Sequence[int], images: Sequence[Floats], max_tokens: int
    ) -> Answer:
        """The greedy answer."""
        ids: list[int] = []
        finish = text = ""
        for step in self.session.generate(prompt, images, max_tokens=max_tokens):
            finish = step.finish
            text += step.text
            if finish != "eos":
                ids.append(step.token_id)
        return Answer(ids=tuple(ids), finished=finish == "eos", text=text)


def open_subject(bundle: Bundle) -> Subject:
    """The bundle through the device's own runtime; works before its manifest is written.

    Of a large bundle only tower or decoder is open at a time, and neither while the original
    works: together they would need the memory of both models twice.
    """
    from mllm_export.device_tests.tower_file import TOWER_FILES
    from mllm_export.runtimes.engines import DECODER_ENGINES
    from mllm_export.runtimes.machine import usable_cores
    from mllm_export.runtimes.opening import is_small
    from mllm_export.runtimes.session import Session

    manifest, cores = bundle.manifest, usable_cores()
    spec, context = manifest.model, manifest.context_tokens
    paths = bundle.path("tower"), bundle.path("decoder")
    engine = TOWER_FILES[manifest.vision_engine].engine()
    open_tower = partial(engine.open, paths[0], spec, cores)
    threads = 1 if is_small(paths[1]) else cores
    open_decoder = partial(
        DECODER_ENGINES[manifest.decoder_engine].open,
        paths[1],
        spec,
        context,
        threads,
        manifest.kv_type,
    )
    sizes = (f.size_bytes for f in manifest.files if f.role in ("tower", "decoder"))
    if sum(sizes) < _LARGE_BYTES:
        seen = SeenDecoder(open_decoder())
        return Subject(Session(bundle, open_tower(), seen), decoder=seen)
    part = OnePart()
    seen = SeenDecoder(PartDecoder(part, open_decoder, context))
    return Subject(Session(bundle, PartTower(part, open_tower), seen), part.close, seen)
