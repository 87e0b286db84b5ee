"""Scales moved along a decoder's folds change nothing that transformers' own model computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mamba_originals import state, transformers_model
from phi_originals import write_phi

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.reference import Forced
from mllm_export.export.parts import DECODERS, Foldable
from mllm_export.export.random_checkpoint import random_tensor

IDS = (1, 300, 17, 45, 402, 99, 7, 311, 5, *range(40, 70))


def folded(read, spec, names, generator):
    """Every weight, after a random scale went along each fold."""
    decoder = DECODERS[spec.kind]
    assert isinstance(decoder, Foldable)
    weights = {name: np.array(read(name), np.float32) for name in names}
    plain = dict(weights)
    for layer in (*range(spec.layers), None):
        for fold in decoder.folds(spec, layer):
            width = weights[fold.into[0]].shape[1]
            scale = generator.lognormal(0, 0.7, width).astype(np.float32)
            for name in fold.into:
                weights[name] = weights[name] * scale
            for name in fold.out_of:
                made = weights[name]
                weights[name] = made / (scale if made.ndim == 1 else scale[:, None])
    return plain, weights


NORMS = ("input_layernorm.weight", ".ln.weight", ".norm.weight")


def assert_same_logits(logits, plain, weights):
    """`logits` of weights by published name; a norm that was left out of the folds shows."""
    expected, found = logits(plain), logits(weights)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    name = next(n for n in weights if n.endswith(NORMS))
    wrong = logits({**weights, name: plain[name]})
    assert np.abs(wrong - expected).max() > 1e-2 * np.abs(expected).max()


def assert_same_function(architecture, plain, weights):
    from mllm_export.device_tests.references._decoder import DecoderRows

    rows = DecoderRows(architecture, plain.__getitem__)
    sequence = [Forced(ids=IDS, images=(), rows=8)]
    assert_same_logits(lambda w: rows.logits(sequence, w.__getitem__)[0], plain, weights)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_folds_of_llama_keep_what_it_computes(kv_heads):
    from mllm_export.config import Config
    from mllm_export.device_tests.references._llama import llama

    spec = replace(DECODERS["llama"].tiny(), kv_heads=kv_heads)
    shapes = DECODERS["llama"].parameters(spec)
    plain, weights = folded(
        lambda name: random_tensor(name, shapes[name], 0), spec, shapes, np.random.default_rng(3)
    )
    config = {
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": spec.vocab,
        "rms_norm_eps": spec.norm_eps,
    }
    assert_same_function(llama(config, Config(config, "config.json")), plain, weights)


@pytest.mark.parametrize("layout", ["phi", "phi-interleaved", "phi-msft"])
def test_folds_of_phi_keep_what_it_computes_in_every_layout(layout, tmp_path):
    from mllm_export.device_tests.references._phi import phi

    checkpoint = Checkpoint(write_phi(tmp_path / "model", layout, dtype="float32"))
    names = frozenset(checkpoint.shapes(False))
    spec = DECODERS["phi"].read_spec(checkpoint.config, names)
    shapes = DECODERS["phi"].parameters(spec)
    plain, weights = folded(checkpoint.read, spec, shapes, np.random.default_rng(3))
    assert_same_function(phi(checkpoint.config, names), plain, weights)


def test_folds_of_mamba_keep_what_it_computes():
    import torch

    spec, published = DECODERS["mamba"].tiny(), state()
    read = {name: values.numpy() for name, values in published.items()}.__getitem__
    plain, weights = folded(
        read, spec, DECODERS["mamba"].parameters(spec), np.random.default_rng(3)
    )

    @torch.no_grad()
    def logits(weights):
        given = {
            n.replace("embedding.", "embeddings."): torch.tensor(v) for n, v in weights.items()
        }
        given["lm_head.weight"] = given["backbone.embeddings.weight"]
        model = transformers_model()
        model.load_state_dict(given, strict=True, assign=True)
        return model.eval()(torch.tensor([IDS])).logits[0, -8:].numpy()

    assert_same_logits(logits, plain, weights)


@pytest.mark.parametrize("layout", ["phi", "phi-interleaved", "phi-msft"])
def test_a_walk_through_phi_tells_inputs_by_the_names_the_file_is_made_from(layout, tmp_path):
    from mllm_export.device_tests.references._decoder import DecoderRows
    from mllm_export.device_tests.references._phi import phi

    checkpoint = Checkpoint(write_phi(tmp_path / "model", layout, dtype="float32"))
    names = frozenset(checkpoint.shapes(False))
    spec = DECODERS["phi"].read_spec(checkpoint.config, names)
    rows = DecoderRows(phi(checkpoint.config, names), checkpoint.read)
    seen = set()
    for layer in rows.walk([Forced(ids=IDS, images=(), rows=1)], True):
        seen |= set(layer.inputs)
    matrices = {
        source
        for tensor in DECODERS["phi"].tensors(spec)
        for source in tensor.sources
        if len(tensor.shape) == 2 and tensor.name != "token_embd.weight"
    }
    assert seen == matrices
