"""The answer, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Literal

from mllm_export.records import record
from mllm_export.runtimes.engines import Decoder, Floats, Segment
from mllm_export.runtimes.sampling import Sampler
from mllm_export.runtimes.text_stream import TextStream

Finish = Literal["", "eos", "stop_string", "length", "context"]


@record
class ImageTime:
    """What the images of a prompt cost."""

    preprocess_ms: float = 0.0
    tower_ms: float = 0.0
    """Tower and projector; near 0 for an image that was embedded before."""


@record
class Step:
    """One generated token. Times are what this step cost; over all steps they add up.

    The sum of the first step's times is the time to the first token.
    """

    index: int
    token_id: int
    text: str
    """Text that became certain with this token; may be empty, or end an earlier character."""
    finish: Finish
    """Why this is the last step; empty when it is not. A stop token counts as a step."""
    preprocess_ms: float
    tower_ms: float
    prefill_ms: float
    decode_ms: float
    prompt_positions: int
    reused_positions: int
    """Positions of the prompt that the KV cache still held."""


@record
class StopRules:
    """When an answer ends."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    max_tokens: int
    decoding: Literal["sentencepiece", "bytes"] = "sentencepiece"
    """How ids become text; see TokenizerSpec."""


class Generation:
    """One answer on a decoder; the decoder must not be used for another in the meantime."""

    def __init__(self, decoder: Decoder, sampler: Sampler, rules: StopRules) -> None:
        """Nothing runs before `steps` is iterated."""
        self._decoder = decoder
        self._sampler = sampler
        self._rules = rules
        self._text = TextStream(rules.strings, rules.decoding)

    def steps(self, segments: Sequence[Segment], images: ImageTime) -> Iterator[Step]:
        """Prefill, then one step per token, the last with a reason to finish."""
        start = perf_counter()
        logits = self._decoder.evaluate(segments, all_logits=False)[0]
        prompt, reused = self._decoder.positions, self._decoder.reused_positions
        spent = {
            "preprocess_ms": images.preprocess_ms,
            "tower_ms": images.tower_ms,
            "prefill_ms": _since_ms(start),
            "decode_ms": 0.0,
        }
        for index in range(self._rules.max_tokens):
            token, text, finish = self._next(logits, index)
            yield Step(
                index=index,
                token_id=token,
                text=text,
                finish=finish,
                prompt_positions=prompt,
                reused_positions=reused,
                **spent,
            )
            if finish:
                return
            start = perf_counter()
            logits = self._decoder.extend(token)
            spent = dict.fromkeys(spent, 0.0) | {"decode_ms": _since_ms(start)}

    def _next(self, logits: Floats, index: int) -> tuple[int, str, Finish]:
        token = self._sampler(logits)
        if token in self._rules.ids:
            return token, self._text.flush(), "eos"
        text = self._text.feed(self._decoder.piece(token))
        finish: Finish = ""
        if self._text.stopped:
            finish = "stop_string"
        elif index + 1 == self._rules.max_tokens:
            finish = "length"
        elif self._decoder.positions >= self._decoder.context_tokens:
            finish = "context"
        return token, text + (self._text.flush() if finish else ""), finish


def _since_ms(start: float) -> float:
    return (perf_counter() - start) * 1000
