"""The tokenizer.ggml.* keys that every kind of tokenizer writes."""

from __future__ import annotations

from mllm_export.export.parts import GgufField
from mllm_export.spec import TokenizerSpec


def field(key: str, value: object, kind: str) -> GgufField:
    """One key below tokenizer.ggml."""
    return GgufField(key=f"tokenizer.ggml.{key}", value=value, kind=kind)


def id_fields(spec: TokenizerSpec) -> list[GgufField]:
    """The special ids; padding where the files name one."""
    ids = {"bos": spec.bos_id, "eos": spec.eos_id, "unknown": spec.unk_id, "padding": spec.pad_id}
    return [
        field(f"{name}_token_id", token_id, "UINT32")
        for name, token_id in ids.items()
        if token_id is not None
    ]
