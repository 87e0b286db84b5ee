"""llama.cpp on our phi2 file computes what transformers computes, text and image alike."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from phi_originals import write_phi

from mllm_export.checkpoint import Checkpoint
from mllm_export.export.decoders import phi
from mllm_export.export.parts import DECODERS, TOKENIZERS

LAYOUTS = ("phi", "phi-interleaved", "phi-msft")
IDS = [300, 17, 45, 402, 99, 7, 311, 5, *range(40, 90)]
LIMIT = 1e-3
"""Of the largest logit. The most measured is 3.1e-4: llama.cpp looks GELU up in a table of float16
values, which no file can change. With GELU's erf form, a mistake of the same size, it is 3.3e-4:
that one only the config can tell, see test_phi."""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The split layout, and transformers' own module with its weights."""
    from transformers import PhiForCausalLM

    folder = write_phi(tmp_path_factory.mktemp("phi") / "phi", dtype="float32")
    model = PhiForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def write(folder, path, write_gguf, decoder=None):
    TOKENIZERS["bpe"].write_random(folder, 512)
    return write_gguf(folder, path, decoder=decoder or DECODERS["phi"], tokenizer="bpe")


def llama_cpp(path, segments):
    """Logits f32[T, V] through the runtime's own engine, with a float32 KV cache."""
    from mllm_export.runtimes.decoder.llama_cpp import LlamaCppDecoder

    spec = SimpleNamespace(decoder=SimpleNamespace(vocab=512, width=256))
    engine = LlamaCppDecoder(path, spec, 128, 1, "f32")
    found = engine.evaluate(segments, all_logits=True)
    engine.close()
    return found


def expected(model, rows):
    with torch.inference_mode():
        return model(inputs_embeds=rows[None]).logits[0].numpy()


def embedded(model, ids):
    return model.get_input_embeddings()(torch.tensor(ids)).detach()


def relative_error(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_of_every_layout_equal_transformers(layout, tmp_path, original, write_gguf):
    folder = write_phi(tmp_path / "model", layout, dtype="float32")
    path = write(folder, tmp_path / "f32.gguf", write_gguf)
    found = llama_cpp(path, [IDS])
    assert relative_error(found, expected(original, embedded(original, IDS))) < LIMIT


def test_image_embeddings_go_in_as_they_are(tmp_path, original, write_gguf):
    """llama.cpp neither scales them nor gives them other positions."""
    folder = write_phi(tmp_path / "model", dtype="float32")
    path = write(folder, tmp_path / "f32.gguf", write_gguf)
    image = np.random.default_rng(0).standard_normal((20, 256)).astype(np.float32)
    found = llama_cpp(path, [IDS[:9], image, IDS[9:]])
    rows = [embedded(original, IDS[:9]), torch.from_numpy(image), embedded(original, IDS[9:])]
    wanted = expected(original, torch.cat(rows))
    assert relative_error(found, wanted) < LIMIT
    rows[1] = rows[1] * 2
    assert relative_error(found, expected(original, torch.cat(rows))) > 20 * LIMIT


class Faulty(phi.Phi):
    """Another file than the right one."""

    def __init__(self, change_tensors=None, change_spec=None):
        self.change_tensors = change_tensors or (lambda tensors: tensors)
        self.change_spec = change_spec or {}

    def read_spec(self, config, names=()):
        return replace(super().read_spec(config, names), **self.change_spec)

    def tensors(self, spec):
        return tuple(self.change_tensors(list(super().tensors(spec))))


def zeroed(part):
    def change(tensors):
        return [
            replace(t, transform=lambda values: 0 * values[0]) if t.name == part else t
            for t in tensors
        ]

    return change


def order_of_the_other_packed_layout(tensors):
    """What upstream's converter writes for 4.36: the packed rows as they stand."""
    parts = {"attn_q": 0, "attn_k": 1, "attn_v": 2}
    changed = []
    for tensor in tensors:
        part = next((n for name, n in parts.items() if f".{name}." in tensor.name), None)
        if part is not None:
            tensor = replace(tensor, transform=lambda v, n=part: np.split(v[0], 3)[n])
        changed.append(tensor)
    return changed


FAULTS = {
    "head without its bias": ("phi", Faulty(zeroed("output.bias"))),
    "query without its bias": ("phi", Faulty(zeroed("blk.0.attn_q.bias"))),
    "norm without its bias": ("phi", Faulty(zeroed("output_norm.bias"))),
    "up without its bias": ("phi", Faulty(zeroed("blk.1.ffn_up.bias"))),
    "another epsilon": ("phi", Faulty(change_spec={"norm_eps": 1e-2})),
    "whole heads turned": ("phi", Faulty(change_spec={"rotary_dim": 64})),
    "another base": ("phi", Faulty(change_spec={"rope_theta": 1e6})),
    "packed rows in the other order": (
        "phi-interleaved",
        Faulty(order_of_the_other_packed_layout),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_planted_fault(fault, tmp_path, monkeypatch, original, write_gguf):
    layout, faulty = FAULTS[fault]
    folder = write_phi(tmp_path / "model", layout, dtype="float32")
    monkeypatch.setattr(phi, "DECODER", faulty)
    path = write(folder, tmp_path / "f32.gguf", write_gguf, faulty)
    found = llama_cpp(path, [IDS])
    assert relative_error(found, expected(original, embedded(original, IDS))) > 5 * LIMIT


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_another_activation_would_show(activation, tmp_path, original, write_gguf):
    from transformers.activations import ACT2FN

    folder = write_phi(tmp_path / "model", dtype="float32")
    found = llama_cpp(write(folder, tmp_path / "f32.gguf", write_gguf), [IDS])
    faulty = copy.deepcopy(original)
    for layer in faulty.model.layers:
        layer.mlp.activation_fn = ACT2FN[activation]
    assert relative_error(found, expected(faulty, embedded(original, IDS))) > 5 * LIMIT


def test_every_layout_names_its_tensors_in_the_spec(tmp_path):
    for layout in LAYOUTS:
        checkpoint = Checkpoint(write_phi(tmp_path / layout, layout))
        spec = DECODERS["phi"].read_spec(checkpoint.config, checkpoint.names)
        assert spec.layout == layout
        assert set(DECODERS["phi"].parameters(spec)) == set(checkpoint.names)
        assert DECODERS["phi"].parameters(spec) == dict(checkpoint.shapes(False))
        assert spec.rotary_dim == 24
