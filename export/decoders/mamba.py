"""Mamba: a convolution and a selective recurrence in each layer, no attention, no positions.

Source: llama.cpp, conversion/mamba.py, MambaModel, and src/models/mamba.cpp; names are those of
state-spaces/mamba, mamba_ssm/models/mixer_seq_simple.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from mllm_export.config import Config
from mllm_export.errors import UnsupportedModelError
from mllm_export.export.parts import Array, GgufField, GgufTensor, as_float32
from mllm_export.quantize.method import Fold
from mllm_export.spec import DecoderSpec, StateSpec
from mllm_export.weights import Drop, Shape

CONTEXT_TOKENS = 1 << 20
"""No position is anywhere, so nothing ends it. Source: conversion/mamba.py, 'arbitrary value'."""

_EMBEDDING, _HEAD = "backbone.embedding.weight", "lm_head.weight"

_MIXER = (
    ("in_proj.weight", "ssm_in.weight"),
    ("conv1d.weight", "ssm_conv1d.weight"),
    ("conv1d.bias", "ssm_conv1d.bias"),
    ("x_proj.weight", "ssm_x.weight"),
    ("dt_proj.weight", "ssm_dt.weight"),
    ("dt_proj.bias", "ssm_dt.bias"),
    ("A_log", "ssm_a"),
    ("D", "ssm_d"),
    ("out_proj.weight", "ssm_out.weight"),
)
"""Below `mixer.`, and below `blk.N.`."""


class Mamba:
    """Mamba-1 with an expansion of 2, the only one that llama.cpp runs; the head is tied."""

    def read_spec(self, config: Config, names: Collection[str] = ()) -> DecoderSpec:
        """Sizes from mamba_ssm's config.json.

        Raises: CheckpointError for a missing key, UnsupportedModelError for a variant that
        llama.cpp's `mamba` architecture does not compute.
        """
        del names
        width = config.positive("d_model")
        settings = config.section("ssm_cfg") if "ssm_cfg" in config else Config({}, config.file)
        _refuse_variants(config, settings)
        step = config.positive("pad_vocab_size_multiple", 8)
        return DecoderSpec(
            kind="mamba",
            width=width,
            layers=config.positive("n_layer"),
            heads=0,
            kv_heads=0,
            head_dim=0,
            mlp_width=0,
            vocab=-(-config.positive("vocab_size") // step) * step,
            context_tokens=CONTEXT_TOKENS,
            norm_eps=1e-5,
            rope_theta=0.0,
            rope_scaling=None,
            tied_head=True,
            state=StateSpec(
                inner_width=2 * width,
                state_size=settings.positive("d_state", 16),
                conv_kernel=settings.positive("d_conv", 4),
                time_step_rank=-(-width // 16),
            ),
        )

    def parameters(self, spec: DecoderSpec) -> Mapping[str, Shape]:
        """Published name to shape; the convolution has a side of 1 in its middle."""
        state = state_of(spec)
        return {
            source: (state.inner_width, 1, state.conv_kernel)
            if source.endswith("conv1d.weight")
            else tensor.shape
            for tensor in self.tensors(spec)
            for source in tensor.sources
        }

    def drops(self, spec: DecoderSpec) -> tuple[Drop, ...]:
        """The tied head, which is stored a second time."""
        del spec
        why = "the output head is the token embedding; llama.cpp takes it from there"
        return (Drop(pattern=_HEAD, why=why),)

    def tensors(self, spec: DecoderSpec) -> tuple[GgufTensor, ...]:
        """The file's tensors in upstream's order."""
        shapes = _shapes(spec)
        found = [
            GgufTensor(
                name="token_embd.weight",
                sources=(_EMBEDDING,),
                shape=(spec.vocab, spec.width),
                transform=_as_stored,
                aliases=("output.weight",),
            )
        ]
        for layer in range(spec.layers):
            at = f"backbone.layers.{layer}."
            for published, name in (
                *((f"mixer.{one}", name) for one, name in _MIXER),
                ("norm.weight", "attn_norm.weight"),
            ):
                found.append(
                    GgufTensor(
                        name=f"blk.{layer}.{name}",
                        sources=(at + published,),
                        shape=shapes[name],
                        transform=_TRANSFORMS.get(name, _as_stored),
                        least="Q8_0" if name in _STEPS else "",
                    )
                )
        norm = ("backbone.norm_f.weight",)
        return (
            *found,
            GgufTensor(
                name="output_norm.weight", sources=norm, shape=(spec.width,), transform=_as_stored
            ),
        )

    def metadata(self, spec: DecoderSpec) -> tuple[GgufField, ...]:
        """Architecture and size keys, as upstream's converter writes them."""
        state = state_of(spec)
        sizes = {
            "context_length": spec.context_tokens,
            "embedding_length": spec.width,
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "block_count": spec.layers,
            "ssm.conv_kernel": state.conv_kernel,
            "ssm.inner_size": state.inner_width,
            "ssm.state_size": state.state_size,
            "ssm.time_step_rank": state.time_step_rank,
        }
        epsilon = "mamba.attention.layer_norm_rms_epsilon"
        return (
            GgufField(key="general.architecture", value="mamba", kind="STRING"),
            *(GgufField(key=f"mamba.{k}", value=v, kind="UINT32") for k, v in sizes.items()),
            GgufField(key=epsilon, value=spec.norm_eps, kind="FLOAT32"),
            GgufField(key="mamba.ssm.dt_b_c_rms", value=False, kind="BOOL"),
        )

    def folds(self, spec: DecoderSpec, layer: int | None) -> tuple[Fold, ...]:
        """The norm before a mixer.

        Between its other maps stand the convolution, the recurrence and a gate. The output head is
        the embedding, whose rows are looked up too.
        """
        del spec
        if layer is None:
            return ()
        at = f"backbone.layers.{layer}."
        return (Fold(into=(f"{at}mixer.in_proj.weight",), out_of=(f"{at}norm.weight",)),)

    def tiny(self) -> DecoderSpec:
        """A small twin whose matrices K-quants can hold, but for the steps: 16 wide."""
        return DecoderSpec(
            kind="mamba",
            width=256,
            layers=2,
            heads=0,
            kv_heads=0,
            head_dim=0,
            mlp_width=0,
            vocab=512,
            context_tokens=CONTEXT_TOKENS,
            norm_eps=1e-5,
            rope_theta=0.0,
            rope_scaling=None,
            tied_head=True,
            state=StateSpec(inner_width=512, state_size=16, conv_kernel=4, time_step_rank=16),
        )


_STEPS = ("ssm_x.weight", "ssm_dt.weight")
"""They set the size of every step of the recurrence, whose error is carried on from token to
token; both together are 1 in 30 of a layer's weights."""


def state_of(spec: DecoderSpec) -> StateSpec:
    """The decoder's state, which this kind always has."""
    assert spec.state is not None, "read_spec and tiny give a state"
    return spec.state


def negative_exponential(values: list[Array]) -> Array:
    """A from its stored logarithm, in float32. Source: mamba_simple.py, Mamba.forward."""
    import torch

    (logarithm,) = values
    # torch's exponential and not numpy's: they differ in the last bit, and upstream takes torch's.
    made: Array = (-torch.exp(torch.from_numpy(np.array(as_float32(logarithm))))).numpy()
    return made


def squeezed(values: list[Array]) -> Array:
    """Shapes: [channels, 1, kernel] -> [channels, kernel]."""
    (kernel,) = values
    return kernel.reshape(kernel.shape[0], kernel.shape[-1])


def _as_stored(values: list[Array]) -> Array:
    (only,) = values
    return only


_TRANSFORMS = {"ssm_a": negative_exponential, "ssm_conv1d.weight": squeezed}


def _shapes(spec: DecoderSpec) -> dict[str, Shape]:
    state, width = state_of(spec), spec.width
    inner, rank = state.inner_width, state.time_step_rank
    return {
        "ssm_in.weight": (2 * inner, width),
        "ssm_conv1d.weight": (inner, state.conv_kernel),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (rank + 2 * state.state_size, inner),
        "ssm_dt.weight": (inner, rank),
        "ssm_dt.bias": (inner,),
        "ssm_a": (inner, state.state_size),
        "ssm_d": (inner,),
        "ssm_out.weight": (width, inner),
        "attn_norm.weight": (width,),
    }


def _refuse_variants(config: Config, settings: Config) -> None:
    """Refuse what the layers of Mamba-1 do not have, and what llama.cpp computes otherwise."""
    reasons = {
        "layer": settings.text("layer", "Mamba1") != "Mamba1",
        "expand": settings.integer("expand", 2) != 2,
        "dt_rank": "dt_rank" in settings and settings.plain()["dt_rank"] != "auto",
        "bias": settings.flag("bias", False),
        "conv_bias": not settings.flag("conv_bias", True),
    }
    wrong = [key for key, is_wrong in reasons.items() if is_wrong]
    if wrong:
        raise UnsupportedModelError(
            f"{settings.file}: ssm_cfg's '{wrong[0]}' is {settings.plain()[wrong[0]]!r}; "
            "llama.cpp's 'mamba' is Mamba-1 with expand 2, dt_rank auto, a bias on the "
            "convolution alone"
        )
    if not config.flag("rms_norm", True) or not config.flag("tie_embeddings", True):
        raise UnsupportedModelError(
            f"{config.file}: rms_norm and tie_embeddings must be true, as in every published Mamba"
        )


DECODER = Mamba()
