"""Token bytes to text that can be shown as it comes."""

from __future__ import annotations

import codecs
from typing import Literal

from mllm_export.runtimes.stopping import StopStrings

_MARK = "\N{REPLACEMENT CHARACTER}"


def _mark_each_byte(failure: UnicodeError) -> tuple[str, int]:
    """SentencePiece writes one mark per byte that is not UTF-8, Python one per run of them."""
    if not isinstance(failure, UnicodeDecodeError):
        raise failure
    return _MARK * (failure.end - failure.start), failure.end


codecs.register_error("mllm_export.mark_each_byte", _mark_each_byte)


_ERRORS = {"sentencepiece": "mllm_export.mark_each_byte", "bytes": "replace"}


class TextStream:
    """Bytes of tokens in, text out: UTF-8 whole, stop strings cut.

    With `sentencepiece` the first blank is dropped: SentencePiece puts it before every text and
    takes it away on decoding. The joined text equals what the original tokenizer's `decode` gives
    for the same ids, without its cleaning up of blanks before punctuation.
    """

    def __init__(
        self,
        stops: tuple[str, ...],
        decoding: Literal["sentencepiece", "bytes"] = "sentencepiece",
    ) -> None:
        """`stops` end the text, see `StopStrings`; `decoding` is the spec's, of its tokenizer."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(_ERRORS[decoding])
        self._stops = StopStrings(stops)
        self._started = decoding != "sentencepiece"

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._stops.stopped

    def feed(self, piece: bytes) -> str:
        """The text that this token completes."""
        return self._stops.feed(self._decode(piece))

    def flush(self) -> str:
        """What was held back: a started stop string, and a mark per byte of a started character."""
        shown = self._stops.feed(self._decode(b"", final=True))
        return shown + self._stops.flush()

    def _decode(self, piece: bytes, final: bool = False) -> str:
        text = self._decoder.decode(piece, final)
        if self._started or not text:
            return text
        self._started = True
        return text.removeprefix(" ")
