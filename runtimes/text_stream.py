"""Token bytes to text that can be shown as it comes."""

from __future__ import annotations

import codecs

from mllm_export.runtimes.stopping import StopStrings

_MARK = "\N{REPLACEMENT CHARACTER}"


def _mark_each_byte(failure: UnicodeError) -> tuple[str, int]:
    """SentencePiece writes one mark per byte that is not UTF-8, Python one per run of them."""
    if not isinstance(failure, UnicodeDecodeError):
        raise failure
    return _MARK * (failure.end - failure.start), failure.end


codecs.register_error("mllm_export.mark_each_byte", _mark_each_byte)


class TextStream:
    """Bytes of tokens in, text out: UTF-8 whole, stop strings cut, the first blank dropped.

    The first blank is the one SentencePiece puts before every text and takes away on decoding.
    The joined text equals `SentencePieceProcessor.decode` of the same ids.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        """`stops` end the text; see `StopStrings`."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("mllm_export.mark_each_byte")
        self._stops = StopStrings(stops)
        self._started = False

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
