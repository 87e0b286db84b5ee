"""A small LLaMA-like SentencePiece tokenizer in the published files, for random checkpoints."""

from __future__ import annotations

import io
import json
from pathlib import Path

from mllm_export.export.llava_layout import VICUNA_SYSTEM

_TRAINED_PIECES = 420
TEXT = (
    VICUNA_SYSTEM,
    "USER: What colour is the circle? ASSISTANT: red",
    "USER: How many squares are there in the picture? ASSISTANT: three",
    "USER: Where is the blue triangle? ASSISTANT: top left",
    "USER: Which digit is shown here? ASSISTANT: seven",
    "The quick brown fox jumps over the lazy dog; 0 1 2 3 4 5 6 7 8 9.",
)


def write_tokenizer(folder: Path, vocab: int) -> None:
    """Write tokenizer.model, tokenizer_config.json and special_tokens_map.json.

    LLaMA's settings: byte fallback, no normalisation, a blank in front, ids 0 <unk>, 1 <s>, 2 </s>.
    """
    (folder / "tokenizer.model").write_bytes(_model(vocab))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "legacy": True,
        "model_max_length": 2048,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    for name, data in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _model(vocab: int) -> bytes:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4),
        model_writer=trained,
        model_type="bpe",
        vocab_size=min(vocab, _TRAINED_PIECES),
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=1.0,
        minloglevel=2,
        num_threads=1,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(trained.getvalue())
    # Words no text holds fill the table up to the size the config names.
    for number in range(len(proto.pieces), vocab):
        proto.pieces.add(piece=f"\u2581filler{number}", score=-float(number), type=1)
    return bytes(proto.SerializeToString())
