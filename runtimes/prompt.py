"""Prompt text to token ids, and token ids with images to what the decoder is fed.

Source: haotian-liu/LLaVA llava/mm_utils.py `tokenizer_image_token`, and
`prepare_inputs_labels_for_multimodal` for the order of the spliced sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unicodedata import normalize

from mllm_export.errors import EngineError
from mllm_export.runtimes.engines import Floats, Segment
from mllm_export.spec import IMAGE_ID, ModelSpec


def encode_prompt(
    spec: ModelSpec, tokenize: Callable[[str], list[int]], question: str, images: int
) -> list[int]:
    """The whole conversation template as ids, `IMAGE_ID` for each image.

    The pieces around the images are tokenized apart: each gets the blank that SentencePiece
    puts before a text, which tokenizing the joined text would not give.
    """
    pieces = spec.prompt.text(question, images).split(spec.prompt.image_marker)
    ids = [spec.tokenizer.bos_id] if spec.tokenizer.add_bos else []
    for number, piece in enumerate(pieces):
        if number:
            ids.append(IMAGE_ID)
        form = spec.tokenizer.normalizer
        ids.extend(tokenize(normalize(form, piece) if form else piece))
    return ids


def splice(ids: Sequence[int], images: Sequence[Floats], vocab: int) -> list[Segment]:
    """Runs of token ids, with the next image's embeddings at every `IMAGE_ID`.

    Raises: EngineError for an id outside the vocabulary, another number of images than
    places, or nothing at all.
    """
    places = sum(1 for token in ids if token == IMAGE_ID)
    if places != len(images):
        raise EngineError(
            f"the prompt has {places} image places (id {IMAGE_ID}), {len(images)} images were given"
        )
    segments: list[Segment] = []
    run: list[int] = []
    waiting = iter(images)
    for token in ids:
        if token == IMAGE_ID:
            segments.extend([run, next(waiting)])
            run = []
        elif 0 <= token < vocab:
            run.append(int(token))
        else:
            raise EngineError(f"token id {token} is outside the vocabulary of {vocab}")
    segments.append(run)
    filled = [segment for segment in segments if len(segment)]
    if not filled:
        raise EngineError("the prompt is empty; give at least one token or image")
    return filled


def count_positions(segments: Sequence[Segment]) -> int:
    """Decoder positions of a spliced sequence."""
    return sum(len(segment) for segment in segments)
