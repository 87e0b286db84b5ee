"""A reference's tower and processor, and transformers' own decoder with its KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image

from mllm_export.bundle import open_bundle
from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.peer import Ask, Spent
from mllm_export.device_tests.reference import REFERENCES, Reference
from mllm_export.spec import IMAGE_ID


class Transformers:
    """The original, loaded."""

    def __init__(self, reference: Reference, decoder: Any) -> None:
        """Both are loaded."""
        self._reference = reference
        self._decoder = decoder

    def answer(self, ask: Ask, tokens: int) -> Spent:
        """See `Opened`."""
        start = perf_counter()
        with Image.open(ask.picture) as opened:
            pixels = self._reference.pixels(opened.convert("RGB"))
        cut = perf_counter()
        image = torch.from_numpy(self._reference.embed(pixels)[0])
        seen = perf_counter()
        state = self._forward(self._embedded(ask.ids, image), None)
        read = perf_counter()
        for _ in range(tokens):
            token = state.logits[:, -1].argmax(-1, keepdim=True)
            state = self._forward(self._table(token), state.past_key_values)
        done = perf_counter()
        self._forward(self._embedded(ask.second_ids, image), None)
        second = perf_counter()
        return Spent(
            preprocess_ms=1000 * (cut - start),
            tower_ms=1000 * (seen - cut),
            prefill_ms=1000 * (read - seen),
            decode_ms=1000 * (done - read) / tokens,
            second_ms=1000 * (second - done),
        )

    def _table(self, ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self._decoder.get_input_embeddings()(ids)
        return rows

    def _embedded(self, ids: Sequence[int], image: torch.Tensor) -> torch.Tensor:
        """The spliced sequence. Shapes: [1, positions, D]."""
        place = list(ids).index(IMAGE_ID)
        before, after = (
            self._table(torch.tensor([part])) for part in (ids[:place], ids[place + 1 :])
        )
        return torch.cat([before, image.to(before.dtype)[None], after], dim=1)

    def _forward(self, embeds: torch.Tensor, past: Any) -> Any:
        with torch.inference_mode():
            return self._decoder(
                inputs_embeds=embeds, past_key_values=past, use_cache=True, logits_to_keep=1
            )


def load_transformers(
    bundle: Path, checkpoint: Path, plain: Path, precision: str, threads: int
) -> Transformers:
    """The reference that checks this family, and the decoder in `plain`."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    family = open_bundle(bundle, verify=False).manifest.model.family
    reference = REFERENCES[family](Checkpoint(checkpoint))
    if precision != "float32":
        reference = reference.at(precision)
    decoder = AutoModelForCausalLM.from_pretrained(plain, dtype=getattr(torch, precision))
    return Transformers(reference, decoder.eval())
