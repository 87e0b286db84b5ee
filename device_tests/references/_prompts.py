"""Prompts of LLaVA's descendants, from the authors' code and transformers' tokenizers."""

from __future__ import annotations

from typing import Any

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Source: haotian-liu/LLaVA, llava/conversation.py, 'vicuna_v1'; the same in
Meituan-AutoML/MobileVLM under 'v1' and in zhuyiche/llava-phi under 'phi-2_v0'."""

IMAGE = "<image>"
IMAGE_TOKEN_INDEX = -200
"""Source: haotian-liu/LLaVA, llava/constants.py."""


def prompt_text(question: str, images: int, around: tuple[str, str] | None = None) -> str:
    """One user turn; images stand before the question, each on a line of its own."""
    pictures = "" if IMAGE in question else f"{IMAGE}\n" * images
    before, after = around or (f"{_SYSTEM} USER: ", " ASSISTANT:")
    return f"{before}{pictures}{question}{after}"


def image_token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text with images in it.

    Source: haotian-liu/LLaVA, llava/mm_utils.py, tokenizer_image_token: pieces between the images
    are tokenized apart, each loses the BOS that the tokenizer gave it, and one BOS stands in
    front. A tokenizer that gives none loses nothing.
    """
    pieces = [tokenizer(piece).input_ids for piece in text.split(IMAGE)]
    has_bos = bool(pieces[0]) and pieces[0][0] == tokenizer.bos_token_id
    ids = [tokenizer.bos_token_id] if has_bos else []
    for at, piece in enumerate(pieces):
        if at:
            ids.append(IMAGE_TOKEN_INDEX)
        ids.extend(piece[1:] if has_bos else piece)
    return ids
