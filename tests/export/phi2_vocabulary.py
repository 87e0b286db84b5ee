"""Phi-2's own tokenizer files, put together from what llama.cpp's source ships.

Phi-2 has GPT-2's vocabulary and merges, then runs of 31 to 2 blanks and of 9 to 2 tabs. Upstream
knows the published files by a hash of the ids they give; that these here have it shows that they
are the same.
"""

import json
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
END = "<|endoftext|>"
HASH = "fcace8b9cac38ce847670c970cd5892031a753a1ef381abd1d9af00f713da085"
"""Source: llama.cpp, conversion/base.py, get_vocab_base_pre, for microsoft/phi-2."""


def find_vocabulary():
    """GPT-2's vocabulary in GGUF, or None where the source release is not unpacked."""
    trees = sorted((ROOT / "build" / "upstream").glob("llama_cpp_python-*/vendor/llama.cpp"))
    return trees[-1] / "models" / "ggml-vocab-gpt-2.gguf" if trees else None


def write_phi2_tokenizer(folder, vocabulary, whole=False):
    """vocab.json and its companions; `whole` writes tokenizer.json with transformers instead."""
    from gguf import GGUFReader

    fields = GGUFReader(vocabulary).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    runs = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
    added = {text: len(tokens) + place for place, text in enumerate(runs)}
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    decoder = {
        str(token_id): {"content": text, "normalized": True, "special": False, **flags}
        for text, token_id in added.items()
    }
    end = {"content": END, "normalized": False, "special": True, **flags}
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(tokens.index(END)): end, **decoder},
        **names,
        "clean_up_tokenization_spaces": True,
        "model_max_length": 2048,
        "tokenizer_class": "CodeGenTokenizer",
    }
    data = {
        "vocab.json": {token: place for place, token in enumerate(tokens)},
        "added_tokens.json": added,
        "tokenizer_config.json": settings,
        "special_tokens_map.json": names,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in data.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    if whole:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def hash_of(tokenizer):
    """Upstream's way to know a tokenizer."""
    return sha256(str(tokenizer.encode(CHECKED)).encode()).hexdigest()


CHECKED = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis "
    "concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 "
    "កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天\uff5e ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure "
    "I'll make it, 'D you like some tea? We'Ve a'lL"
)
"""Source: llama.cpp, conversion/base.py, get_vocab_base_pre."""
