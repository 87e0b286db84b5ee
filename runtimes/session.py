"""A bundle that answers, with the four places open where it can be held against the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import Self

from mllm_export.bundle import Bundle
from mllm_export.errors import EngineError
from mllm_export.runtimes.embedding_cache import EmbeddingCache
from mllm_export.runtimes.engines import Decoder, Floats, Segment, Tower
from mllm_export.runtimes.generation import Generation, ImageTime, Step, StopRules
from mllm_export.runtimes.preprocess import Picture, preprocess_inputs
from mllm_export.runtimes.prompt import encode_prompt, splice
from mllm_export.runtimes.sampling import Sampler, Sampling

ImageInput = Picture | npt.NDArray[np.float32]
"""A picture, its pixels f32[N, 3, S, S], or embeddings f32[T, D] computed before."""

Images = ImageInput | Sequence[ImageInput]


class Session:
    """An opened bundle. Not for several threads at once, and one streamed answer at a time."""

    def __init__(self, bundle: Bundle, tower: Tower, decoder: Decoder) -> None:
        """Use `mllm_export.runtimes.load`."""
        self.manifest = bundle.manifest
        self.spec = bundle.manifest.model
        self._tower = tower
        self._decoder = decoder
        self._embeddings = EmbeddingCache()
        self._turn = 0

    @property
    def context_tokens(self) -> int:
        """Positions that prompt and answer may take together."""
        return self._decoder.context_tokens

    def preprocess(self, image: Picture) -> Floats:
        """A picture as pixels f32[N, 3, S, S], one tile after another; N is 1 here.

        A tower of several inputs has them in one array; see `mllm_export.pixels`.

        Raises: ImageError for what is not a picture, or is too large.
        """
        return preprocess_inputs(image, self.spec.vision.image_inputs)

    def embed(self, image: Picture | Floats) -> Floats:
        """A picture, or its pixels f32[N, 3, S, S], as embeddings f32[N * T, D].

        The last few images are remembered; the array is read-only.

        Raises: ImageError, and EngineError for pixels of another shape or type.
        """
        pixels = image if isinstance(image, np.ndarray) else self.preprocess(image)
        return self._embeddings.get(pixels, self._tower.embed)

    def encode(self, prompt: str, images: int = 1) -> list[int]:
        """The whole conversation template around `prompt` as ids, -200 for each image.

        Raises: SpecError when `prompt` holds image markers in another number than `images`.
        """
        return encode_prompt(self.spec, self._decoder.tokenize, prompt, images)

    def logits(self, prompt: str | Sequence[int], images: Images = ()) -> Floats:
        """Logits f32[positions, V] over the spliced sequence, one row per position.

        `prompt` is a question for the template, or ids with -200 for each image.

        Raises: EngineError for a sequence longer than the context.
        """
        segments, _ = self._prepare(prompt, images)
        self._turn += 1
        return self._decoder.evaluate(segments, all_logits=True)

    def generate(
        self,
        prompt: str | Sequence[int],
        images: Images = (),
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Iterator[Step]:
        """Stream an answer; greedy unless `temperature` is over 0.

        The images are embedded at the call, the prompt is read at the first step.

        Raises: at the call ImageError, SpecError, and EngineError for settings out of range or
        a prompt longer than the context; while streaming EngineError when the session was
        asked something else in between.
        """
        if max_tokens < 1:
            raise EngineError(f"max_tokens is {max_tokens}, needed: at least 1")
        settings = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        segments, images_ms = self._prepare(prompt, images)
        rules = StopRules(
            ids=frozenset((*self.spec.prompt.stop_ids, self.spec.tokenizer.eos_id)),
            strings=self.spec.prompt.stop_strings,
            max_tokens=max_tokens,
            decoding=self.spec.tokenizer.decoding,
        )
        answer = Generation(self._decoder, Sampler(settings), rules)
        return self._stream(answer.steps(segments, images_ms))

    def answer(
        self, prompt: str | Sequence[int], images: Images = (), *, max_tokens: int = 128
    ) -> str:
        """The greedy answer as one text, without blanks around it, as the original prints it."""
        steps = self.generate(prompt, images, max_tokens=max_tokens)
        return "".join(step.text for step in steps).strip()

    def forget(self) -> None:
        """Drop remembered embeddings and the KV cache: the next answer costs what a first does.

        An answer that is still streaming has lost what it goes on from, and says so.
        """
        self._turn += 1
        self._embeddings = EmbeddingCache()
        self._decoder.forget()

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        self._tower.close()
        self._decoder.close()
        self._embeddings = EmbeddingCache()

    def __enter__(self) -> Self:
        """The session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _stream(self, steps: Iterator[Step]) -> Iterator[Step]:
        self._turn += 1
        turn = self._turn
        for step in steps:
            yield step
            if self._turn != turn and not step.finish:
                raise EngineError(
                    "the session was asked something else while this answer was streaming; "
                    "read an answer to its end first, or load the bundle twice"
                )

    def _prepare(
        self, prompt: str | Sequence[int], images: Images
    ) -> tuple[list[Segment], ImageTime]:
        given = _as_list(images)
        ids = self.encode(prompt, len(given)) if isinstance(prompt, str) else prompt
        embedded = [self._timed_embed(image) for image in given]
        segments = splice(ids, [values for values, _ in embedded], self.spec.decoder.vocab)
        self._decoder.check(segments)
        times = ImageTime(
            preprocess_ms=sum(time.preprocess_ms for _, time in embedded),
            tower_ms=sum(time.tower_ms for _, time in embedded),
        )
        return segments, times

    def _timed_embed(self, image: ImageInput) -> tuple[Floats, ImageTime]:
        start = perf_counter()
        if isinstance(image, np.ndarray):
            if image.ndim == 2:  # embeddings already
                return image, ImageTime()
            pixels = image
        else:
            pixels = self.preprocess(image)
        prepared = perf_counter()
        embeddings = self.embed(pixels)
        done = perf_counter()
        return embeddings, ImageTime(
            preprocess_ms=(prepared - start) * 1000, tower_ms=(done - prepared) * 1000
        )


def _as_list(images: Images) -> list[ImageInput]:
    if isinstance(images, str | bytes | Path | Image.Image | np.ndarray):
        return [images]
    return list(images)
