"""Text as engines and tokenizers take it: UTF-8, which not every Python string can become."""

from __future__ import annotations

from mllm_export.errors import EngineError


def utf8(text: str, what: str) -> bytes:
    """The text's bytes; `what` names it to the reader.

    Raises: EngineError for half a character, which is what Python makes of a command line's bytes
    that are no UTF-8.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as failure:
        raise EngineError(
            f"{what} holds half a character, {text[failure.start]!r} at place "
            f"{failure.start}, which has no UTF-8 form; remove it"
        ) from failure
