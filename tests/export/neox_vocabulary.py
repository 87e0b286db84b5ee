"""GPT-NeoX-20B's own tokenizer.json, put together from what llama.cpp's source ships."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNS = 23
"""Runs of 24 to 2 blanks, the last of the added tokens."""
TOKENS = 50277


def find_neox():
    """The vocabulary in GGUF, or None where the source release is not unpacked."""
    trees = sorted((ROOT / "build" / "upstream").glob("llama_cpp_python-*/vendor/llama.cpp"))
    return trees[-1] / "models" / "ggml-vocab-mpt.gguf" if trees else None


def write_neox_tokenizer(folder, vocabulary):
    """The published files, as the folder of every Mamba's LLM holds them."""
    from gguf import GGUFReader

    fields = GGUFReader(vocabulary).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()[:TOKENS]
    merges = fields["tokenizer.ggml.merges"].contents()
    special = tokens[:2]
    assert special == ["<|endoftext|>", "<|padding|>"]
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    added = [{"id": i, "content": t, "normalized": False, "special": True, **flags}
             for i, t in enumerate(special)]  # fmt: skip
    for at, text in enumerate(tokens[-RUNS:], TOKENS - RUNS):
        assert text == " " * (24 - (at - TOKENS + RUNS))
        added.append({"id": at, "content": text, "normalized": True, "special": False, **flags})
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
             "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "vocab": {t: i for i, t in enumerate(tokens[:-RUNS])}, "merges": merges}  # fmt: skip
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
             "normalizer": {"type": "NFC"}, "pre_tokenizer": cut, "post_processor": cut,
             "decoder": cut, "model": model}  # fmt: skip
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), special[0])
    settings = {"add_prefix_space": False, **names, "tokenizer_class": "GPTNeoXTokenizer"}
    folder.mkdir(parents=True, exist_ok=True)
    files = {"tokenizer.json": whole, "tokenizer_config.json": settings}
    for name, data in {**files, "special_tokens_map.json": names}.items():
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
    return folder
