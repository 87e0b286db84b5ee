"""Transformer layers as CLIP and SigLIP publish them, for image and text towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from mllm_export.weights import Shape

if TYPE_CHECKING:
    from torch import Tensor

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


class Sizes(Protocol):
    """What a layer needs of a spec; EncoderSpec and TextTowerSpec have it."""

    @property
    def width(self) -> int:
        """Of the residual stream."""

    @property
    def heads(self) -> int:
        """Of the attention."""

    @property
    def mlp_width(self) -> int:
        """Of the hidden layer."""

    @property
    def activation(self) -> str:
        """quick_gelu, gelu or gelu_pytorch_tanh."""

    @property
    def norm_eps(self) -> float:
        """Of every norm."""


def norm_parameters(name: str, width: int) -> dict[str, Shape]:
    """A LayerNorm's two vectors."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear_parameters(name: str, width_in: int, width_out: int) -> dict[str, Shape]:
    """A linear map with bias, as published: [out, in]."""
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def layer_parameters(at: str, spec: Sizes) -> dict[str, Shape]:
    """One pre-norm layer below `at`. Source: transformers, CLIPEncoderLayer."""
    width = spec.width
    shapes = norm_parameters(f"{at}layer_norm1", width)
    for name in _ATTENTION:
        shapes.update(linear_parameters(f"{at}self_attn.{name}", width, width))
    shapes.update(norm_parameters(f"{at}layer_norm2", width))
    shapes.update(mlp_parameters(f"{at}mlp.", spec))
    return shapes


def mlp_parameters(at: str, spec: Sizes) -> dict[str, Shape]:
    """Two linear maps."""
    return {
        **linear_parameters(f"{at}fc1", spec.width, spec.mlp_width),
        **linear_parameters(f"{at}fc2", spec.mlp_width, spec.width),
    }


def layer(
    spec: Sizes, weights: Mapping[str, Tensor], at: str, rows: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attention, then MLP, each behind a norm and beside a skip.

    Shapes: rows f32[1, T, D]; mask f32[T, T] is added to the scores.
    """
    normed = layer_norm(spec.norm_eps, weights, f"{at}layer_norm1", rows)
    rows = rows + _self_attention(spec, weights, f"{at}self_attn.", normed, mask)
    normed = layer_norm(spec.norm_eps, weights, f"{at}layer_norm2", rows)
    return rows + mlp(spec, weights, f"{at}mlp.", normed)


def mlp(spec: Sizes, weights: Mapping[str, Tensor], at: str, rows: Tensor) -> Tensor:
    """fc2(activation(fc1(rows)))."""
    hidden = activate(spec.activation, affine(weights, f"{at}fc1", rows))
    return affine(weights, f"{at}fc2", hidden)


def affine(weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    """A linear map; its weight is stored [in, out], see `export.stored`."""
    return rows @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def layer_norm(eps: float, weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    """LayerNorm over the last axis."""
    from torch.nn import functional

    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    made: Tensor = functional.layer_norm(rows, (rows.shape[-1],), scale, shift, eps)
    return made


def attention(
    heads: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention. Shapes: f32[1, Tq, D], f32[1, Tk, D] twice -> f32[1, Tq, D]."""
    width = query.shape[-1]
    head_width = width // heads

    def split(rows: Tensor) -> Tensor:
        return rows.reshape(1, -1, heads, head_width).transpose(1, 2)

    scores = (split(query) * head_width**-0.5) @ split(key).transpose(2, 3)
    if mask is not None:
        scores = scores + mask
    mixed: Tensor = scores.softmax(-1) @ split(value)
    return mixed.transpose(1, 2).reshape(1, -1, width)


def activate(name: str, values: Tensor) -> Tensor:
    """quick_gelu, gelu by the error function, or gelu by tanh."""
    from torch.nn import functional

    if name == "quick_gelu":
        return values * (1.702 * values).sigmoid()
    form = "tanh" if name == "gelu_pytorch_tanh" else "none"
    made: Tensor = functional.gelu(values, approximate=form)
    return made


def _self_attention(
    spec: Sizes, weights: Mapping[str, Tensor], at: str, rows: Tensor, mask: Tensor | None
) -> Tensor:
    query, key, value = (affine(weights, at + name, rows) for name in _ATTENTION[:3])
    return affine(weights, f"{at}out_proj", attention(spec.heads, query, key, value, mask))
