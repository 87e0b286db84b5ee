"""A LLaMA-like SentencePiece tokenizer, and prompts as LLaVA's kin tokenize them."""

import io
from functools import cache
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizerBase

from mllm_export.export.reference.corpus import PROMPT, sentences

IMAGE = "<image>"


def train_tokenizer(path: Path, vocab: int) -> None:
    """Write `tokenizer.model`; the settings are those of LLaMA's own."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=written,
        model_type="bpe",
        vocab_size=vocab,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())


class Prompts:
    """Ids of prompts and conversations, text around the image apart.

    Source: MobileVLM's and LLaVA-Phi's tokenizer_image_token: the pieces around `<image>` are
    tokenized one by one, and the later piece loses its BOS, where the tokenizer adds one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos: str) -> None:
        self._tokenizer, self._eos = tokenizer, eos
        before, self._after = PROMPT.split(IMAGE)
        self.before: list[int] = tokenizer(before).input_ids
        self._bos_count = int(self.before[0] == tokenizer.bos_token_id)
        self.prompt = cache(self._prompt)
        self.conversation = cache(self._conversation)

    def _prompt(self, question: str) -> list[int]:
        """The ids after the image, up to where the answer begins."""
        ids: list[int] = self._tokenizer(self._after.format(question=question)).input_ids
        return ids[self._bos_count :]

    def _conversation(self, question: str, answer: str) -> tuple[list[int], int]:
        """The ids after the image with answer and end, and how many of them are the prompt."""
        text = f"{self._after.format(question=question)} {answer}{self._eos}"
        ids = self._tokenizer(text).input_ids[self._bos_count :]
        prompt = self._prompt(question)
        if ids[: len(prompt)] != prompt:
            raise ValueError(f"the ids of {question!r} change when {answer!r} follows")
        return ids, len(prompt)
