"""The decoder walked a layer at a time against transformers' own model with hooks on it."""

import numpy as np
import pytest
import torch

from mllm_export.checkpoint import Checkpoint
from mllm_export.device_tests.reference import REFERENCES, Forced, Walkable
from mllm_export.device_tests.references import _decoder
from mllm_export.spec import IMAGE_ID


@pytest.fixture
def reference(original):
    return REFERENCES["mobilevlm"](Checkpoint(original[0]))


def sequences():
    generator = np.random.default_rng(0)
    image = generator.standard_normal((9, 64)).astype(np.float32)
    return [
        Forced(ids=(1, IMAGE_ID, 17, 23, 5), images=(image,), rows=1),
        Forced(ids=(1, 300, 4), images=(), rows=1),
    ], image


@torch.no_grad()
def expected_moments(model, image, share):
    """Every linear map's inputs over both sequences, from the whole model."""
    found, handles = {}, []
    shares = None

    def watch(name):
        def hook(_part, given):
            rows = given[0].reshape(-1, given[0].shape[-1]).double()
            gram = (rows * shares[:, None]).T @ rows
            found[name] = found.get(name, 0) + gram

        return hook

    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear):
            handles.append(part.register_forward_pre_hook(watch(f"{name}.weight")))
    table = model.get_input_embeddings().weight
    pictured = torch.cat([table[[1]], torch.from_numpy(image), table[[17, 23, 5]]])
    shares = torch.tensor([1.0] + [share] * 9 + [1.0] * 3, dtype=torch.float64)
    model(inputs_embeds=pictured[None])
    shares = torch.ones(3, dtype=torch.float64)
    model(inputs_embeds=table[[1, 300, 4]][None])
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("diagonal_only", [True, False])
def test_moments_are_those_of_transformers_whole_model(reference, original, diagonal_only):
    given, image = sequences()
    whole = original[1]["decoder"]
    expected = expected_moments(whole, image, _decoder.IMAGE_SHARE)
    seen = {}
    for layer in reference.walk(given, diagonal_only):
        seen |= layer.inputs
    assert set(seen) == set(expected)
    for name, gram in expected.items():
        wanted = gram.diagonal() if diagonal_only else gram
        assert np.allclose(seen[name].gram, wanted, rtol=2e-3, atol=1e-3), name


def test_layers_behind_see_the_weights_put_in_place(reference):
    given, _ = sequences()
    assert isinstance(reference, Walkable)
    plain = [layer.inputs for layer in reference.walk(given, True)]
    changed = []
    for layer in reference.walk(given, True):
        changed.append(layer.inputs)
        name = "model.layers.0.mlp.down_proj.weight"
        if name in layer.inputs:
            layer.replace({name: np.zeros((64, 96), np.float32)})
    first, second = (next(iter(inputs)) for inputs in plain[:2])
    assert np.array_equal(plain[0][first].gram, changed[0][first].gram)
    assert not np.allclose(plain[1][second].gram, changed[1][second].gram)
    # The reference's own layers stay what they were.
    again = [layer.inputs for layer in reference.walk(given, True)]
    assert np.array_equal(again[1][second].gram, plain[1][second].gram)
