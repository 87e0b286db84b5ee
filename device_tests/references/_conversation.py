"""MobileVLM's prompts, from the authors' code and transformers' slow tokenizer."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaTokenizer

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Source: Meituan-AutoML/MobileVLM, mobilevlm/conversation.py, key 'v1'."""

IMAGE = "<image>"
IMAGE_TOKEN_INDEX = -200
"""Source: mobilevlm/constants.py."""
STOP = "</s>"


def prompt_text(question: str, images: int) -> str:
    """One user turn; images stand before the question, each on a line of its own."""
    pictures = "" if IMAGE in question else f"{IMAGE}\n" * images
    return f"{_SYSTEM} USER: {pictures}{question} ASSISTANT:"


def load_tokenizer(folder: Path) -> LlamaTokenizer:
    """The slow tokenizer, with the settings that stand in the checkpoint."""
    return LlamaTokenizer.from_pretrained(folder, local_files_only=True)


def image_token_ids(tokenizer: LlamaTokenizer, text: str) -> list[int]:
    """Ids of a text with images in it.

    Source: mobilevlm/utils.py, tokenizer_image_token: pieces between the images are tokenized
    apart, each loses the BOS that the tokenizer gave it, and one BOS stands in front.
    """
    pieces = [tokenizer(piece).input_ids for piece in text.split(IMAGE)]
    has_bos = bool(pieces[0]) and pieces[0][0] == tokenizer.bos_token_id
    ids = [tokenizer.bos_token_id] if has_bos else []
    for at, piece in enumerate(pieces):
        if at:
            ids.append(IMAGE_TOKEN_INDEX)
        ids.extend(piece[1:] if has_bos else piece)
    return ids
