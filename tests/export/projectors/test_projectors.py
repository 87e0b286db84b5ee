"""Each projector against a module written from its authors' code, loaded strictly by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mllm_export.errors import SpecError
from mllm_export.export.part_module import projector_module
from mllm_export.export.parts import PROJECTORS
from mllm_export.export.projectors.ldp import squeeze_width

NAMES = PROJECTORS.names()


def apply(original, features, projector=None, weights=None):
    weights = weights or original.head.state_dict()
    spec = projector or original.projector
    read = projector_module(PROJECTORS[spec.kind], spec, lambda n: weights[n].numpy())
    return read(features).detach().numpy()


def features_for(original, seed=3):
    spec = original.projector
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, spec.tokens_in, spec.in_width, generator=generator)


@pytest.mark.parametrize("kind", NAMES)
def test_projector_equals_the_original(vision, error, kind):
    original = vision(kind, out_width=104)
    features = features_for(original)
    theirs = original.head(features).detach().numpy()
    ours = apply(original, features)
    assert ours.shape == (1, original.projector.tokens_out, 104)
    assert error(ours, theirs) < 5e-6


@pytest.mark.parametrize("kind", NAMES)
def test_parameters_are_the_published_names_and_shapes(vision, kind):
    original = vision(kind)
    assert dict(PROJECTORS[kind].parameters(original.projector)) == original.projector_shapes()


@pytest.mark.parametrize("kind", ["fused_ldpnet", "ldp", "ldpv2"])
@pytest.mark.parametrize("side", [4, 7, 12, 14, 16, 24, 25, 27, 28, 36])
def test_grids_of_any_side_follow_torch(vision, error, kind, side):
    image = vision(kind).encoder.image
    original = vision(kind, image=replace(image, size_px=4 * side))
    assert original.projector.tokens_in == side * side
    features = features_for(original)
    theirs = original.head(features).detach().numpy()
    assert error(apply(original, features), theirs) < 5e-6
    assert original.projector.tokens_out == theirs.shape[1]


@pytest.mark.parametrize(
    ("kind", "width", "count"),
    [
        ("ldp", 2048, 18_936_832),
        ("ldp", 2560, 28_913_920),
        ("ldp", 4096, 71_428_096),
        ("ldpv2", 2048, 6_316_032),
        ("ldpv2", 2560, 9_205_760),
        ("ldpv2", 4096, 21_020_672),
        ("mlp2x_gelu", 2048, 6_295_552),
        ("mlp2x_gelu", 4096, 20_979_712),
    ],
)
def test_published_widths_have_the_known_parameter_counts(kind, width, count):
    spec = PROJECTORS[kind].spec(1024, width, 576)
    shapes = PROJECTORS[kind].parameters(spec).values()
    assert sum(torch.Size(shape).numel() for shape in shapes) == count
    assert spec.tokens_out == (576 if kind == "mlp2x_gelu" else 144)


def test_cobras_grid_of_27_becomes_196_tokens():
    spec = PROJECTORS["fused_ldpnet"].spec(2176, 2560, 729)
    shapes = PROJECTORS["fused_ldpnet"].parameters(spec).values()
    assert sum(torch.Size(shape).numel() for shape in shapes) == (
        2176 * 8704 + 8704 + 8704 * 2560 + 2560 + 2560 * 9 + 2560
    )
    assert spec.tokens_out == 196


@pytest.mark.parametrize("width", [32, 96, 104, 132, 1024, 2048, 2560, 4096, 5120])
def test_squeeze_width_is_torchvisions(width):
    from torchvision.models._utils import _make_divisible

    assert squeeze_width(width) == _make_divisible(width // 4, 8)


@pytest.mark.parametrize("kind", ["fused_ldpnet", "ldp", "ldpv2"])
@pytest.mark.parametrize("tokens", [0, 577, 575])
def test_tokens_that_make_no_square_are_refused(kind, tokens):
    with pytest.raises(SpecError, match=f"{kind} needs a square of patches, .* {tokens} tokens"):
        PROJECTORS[kind].spec(64, 96, tokens)


def swap(weights, first, second):
    return {**weights, first: weights[second], second: weights[first]}


def without(weights, name):
    return {**weights, name: torch.zeros_like(weights[name])}


FAULTS = {
    "ldp: second norm of a block for the first": (
        "ldp",
        lambda w: swap(w, "mb_block.1.block.0.1.weight", "mb_block.1.block.2.1.weight"),
    ),
    "ldp: blocks in the other order": (
        "ldp",
        lambda w: swap(w, "mb_block.1.block.2.0.weight", "mb_block.2.block.2.0.weight"),
    ),
    "ldp: no excitation bias": ("ldp", lambda w: without(w, "mb_block.2.block.1.fc2.bias")),
    "ldp: kernel turned": (
        "ldp",
        lambda w: {
            **w,
            "mb_block.2.block.0.0.weight": w["mb_block.2.block.0.0.weight"].transpose(2, 3),
        },
    ),
    "ldpv2: no convolution bias": ("ldpv2", lambda w: without(w, "peg.peg.0.bias")),
    "ldpv2: no convolution": ("ldpv2", lambda w: without(w, "peg.peg.0.weight")),
    "mlp2x_gelu: no first bias": ("mlp2x_gelu", lambda w: without(w, "0.bias")),
    "fused_ldpnet: no convolution": ("fused_ldpnet", lambda w: without(w, "4.peg.0.weight")),
    "fused_gelu_mlp: no bias within": ("fused_gelu_mlp", lambda w: without(w, "2.bias")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_in_the_weights_shows(vision, error, fault):
    kind, spoil = FAULTS[fault]
    original = vision(kind)
    features = features_for(original)
    theirs = original.head(features).detach().numpy()
    spoilt = apply(original, features, weights=spoil(original.head.state_dict()))
    assert error(spoilt, theirs) > 1e-2


def tanh_gelu(head):
    gelus = [m for m in head.modules() if isinstance(m, torch.nn.GELU)]
    assert gelus
    gelus[-1].approximate = "tanh"


def no_last_gelu(head):
    head[3] = torch.nn.Identity()


def no_residual(head):
    head.mb_block[1].has_residual = False


def other_epsilon(head):
    norms = [m for m in head.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 4
    for norm in norms:
        norm.eps = 1e-3


def plain_swish(head):
    head.mb_block[1].block[0][2] = torch.nn.SiLU()


def pool_after_convolution(head):
    pool, convolution = head.dwn, head.peg.peg
    head.forward = lambda x: _rows(pool(_peg(convolution, _map(head.mlp.mlp(x)))))


def pooled_last(head):
    head[3], head[4] = head[4], head[3]


def no_skip(head):
    head.forward = lambda x: _rows(head.peg.peg(head.dwn(_map(head.mlp.mlp(x)))))


def _map(rows):
    side = int(rows.shape[1] ** 0.5)
    return rows.transpose(1, 2).reshape(1, -1, side, side)


def _rows(grid):
    return grid.flatten(2).transpose(1, 2)


def _peg(convolution, grid):
    return convolution(grid) + grid


@pytest.mark.parametrize(
    ("kind", "spoil", "at_least"),
    [
        ("ldp", tanh_gelu, 2e-5),
        ("ldp", no_residual, 1e-2),
        ("ldp", other_epsilon, 1e-4),
        ("ldp", plain_swish, 1e-2),
        ("ldpv2", tanh_gelu, 2e-5),
        ("ldpv2", pool_after_convolution, 1e-2),
        ("ldpv2", no_skip, 1e-2),
        ("mlp2x_gelu", tanh_gelu, 2e-5),
        ("fused_ldpnet", tanh_gelu, 2e-5),
        ("fused_ldpnet", pooled_last, 1e-2),
        ("fused_gelu_mlp", tanh_gelu, 2e-5),
        ("fused_gelu_mlp", no_last_gelu, 1e-2),
    ],
)
def test_a_fault_in_the_maths_would_show(vision, error, kind, spoil, at_least):
    """Other maths with the same tensors is further off than the 5e-6 that the tests allow."""
    original = vision(kind)
    features = features_for(original)
    ours = apply(original, features)
    spoil(original.head)
    assert error(ours, original.head(features).detach().numpy()) > at_least
