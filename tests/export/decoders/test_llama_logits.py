"""llama.cpp on our file computes what transformers computes on the checkpoint."""

from dataclasses import replace

import numpy as np
import pytest

from mllm_export.export.decoders import llama

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "head-dim": {"head_dim": 32},
    "eps-theta": {"rms_norm_eps": 1e-2, "rope_theta": 500.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn-original": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "llama3": {"rope_scaling": LLAMA3},
}
PROMPTS = [[1, 300, 17, 45, 402, 99, 7, 311], [1, *range(40, 100)]]
LIMIT = 2e-5
"""Of the largest logit; the most that was measured is 3e-6."""


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=list(VARIANTS))
def test_logits_equal_transformers(
    config, tmp_path, llama_folder, write_gguf, llama_cpp_logits, torch_logits
):
    folder = llama_folder(tmp_path / "tiny", dtype="float32", **config)
    path = write_gguf(folder, tmp_path / "f32.gguf")
    for ids in PROMPTS:
        found = llama_cpp_logits(path, ids)
        assert relative_error(found, torch_logits(folder, ids)) < LIMIT


def plain_rows(decoder, spec):
    """The file's tensors with q and k left in transformers' row order."""
    return tuple(
        replace(t, transform=lambda values: values[0])
        if t.name.endswith(("attn_q.weight", "attn_k.weight"))
        else t
        for t in llama.Llama.tensors(decoder, spec)
    )


def swapped(left, right):
    """The file's tensors with two of a layer exchanged."""

    def tensors(decoder, spec):
        names = {left: right, right: left}
        found = {t.name: t for t in llama.Llama.tensors(decoder, spec)}
        return tuple(
            replace(t, sources=found[names[t.name]].sources) if t.name in names else t
            for t in found.values()
        )

    return tensors


@pytest.mark.parametrize(
    "fault",
    [plain_rows, swapped("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")],
    ids=["unpermuted", "gate-for-up"],
)
def test_the_comparison_sees_a_planted_fault(
    fault, tmp_path, monkeypatch, llama_folder, write_gguf, llama_cpp_logits, torch_logits
):
    folder = llama_folder(tmp_path / "tiny", dtype="float32")

    class Faulty(llama.Llama):
        def tensors(self, spec):
            return fault(self, spec)

    monkeypatch.setattr(llama, "DECODER", Faulty())
    path = write_gguf(folder, tmp_path / "f32.gguf")
    found = llama_cpp_logits(path, PROMPTS[0])
    assert relative_error(found, torch_logits(folder, PROMPTS[0])) > 1000 * LIMIT
