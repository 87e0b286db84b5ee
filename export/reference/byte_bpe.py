"""A byte-level BPE tokenizer with the files that Phi-2 ships.

Source: microsoft/phi-2's tokenizer files, which are CodeGen's: GPT-2's byte alphabet and
splitting rule, `<|endoftext|>` behind the merged pieces, then runs of blanks and of tabs as added
tokens that are matched before the text is split.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mllm_export.export.reference.corpus import sentences

END_OF_TEXT = "<|endoftext|>"
BLANK_RUNS, TAB_RUNS = range(31, 1, -1), range(9, 1, -1)
CONTEXT_TOKENS = 2048


def added_texts() -> list[str]:
    """The added tokens in order of their ids."""
    return [" " * run for run in BLANK_RUNS] + ["\t" * run for run in TAB_RUNS]


def _trained(pieces: int) -> models.BPE:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    return tokenizer.model


def _token(text: str, special: bool) -> dict[str, object]:
    return {
        "content": text, "lstrip": False, "normalized": not special, "rstrip": False,
        "single_word": False, "special": special,
    }  # fmt: skip


def _write_tokenizer_json(folder: Path, vocab: dict[str, int], merges: list[str]) -> None:
    """tokenizer.json, its merges as strings, as they were written when Phi-2 was published."""
    pairs = [(first, second) for first, second in (line.split(" ") for line in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    written = json.loads(tokenizer.to_str())
    added = [(END_OF_TEXT, True), *((text, False) for text in added_texts())]
    written["added_tokens"] = [
        {"id": vocab[END_OF_TEXT] + at, **_token(text, special)}
        for at, (text, special) in enumerate(added)
    ]
    written["model"]["merges"] = merges
    text = json.dumps(written, indent=2, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def _configs(first_added: int) -> dict[str, dict[str, object]]:
    texts = [END_OF_TEXT, *added_texts()]
    decoder = {
        str(first_added - 1 + at): _token(text, special=at == 0) for at, text in enumerate(texts)
    }
    names = ("bos_token", "eos_token", "unk_token")
    settings: dict[str, object] = {
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": True,
        "eos_token": END_OF_TEXT,
        "model_max_length": CONTEXT_TOKENS,
        "tokenizer_class": "CodeGenTokenizer",
        "unk_token": END_OF_TEXT,
    }
    special = {key: value for key, value in _token(END_OF_TEXT, True).items() if key != "special"}
    return {
        "tokenizer_config.json": settings,
        "special_tokens_map.json": dict.fromkeys(names, special),
        "added_tokens.json": {text: first_added + at for at, text in enumerate(texts[1:])},
    }


def write_byte_bpe(folder: Path, vocab: int) -> None:
    """Train on the corpus and write vocab.json, merges.txt, tokenizer.json and their configs.

    `vocab` bounds the pieces, added tokens included; a short corpus yields fewer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _trained(vocab - 1 - len(added_texts())).save(str(folder))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    pieces: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    pieces[END_OF_TEXT] = len(pieces)
    for name, content in {"vocab.json": pieces, **_configs(len(pieces))}.items():
        text = json.dumps(content, indent=None if name == "vocab.json" else 2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    _write_tokenizer_json(folder, pieces, [line for line in merges if not line.startswith("#v")])
