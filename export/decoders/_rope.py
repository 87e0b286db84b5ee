"""Rotary positions in transformers' config words and in GGUF's."""

from __future__ import annotations

import math

import numpy as np

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.parts import Array, GgufField, GgufTensor
from mllm_export.spec import DecoderSpec, RopeScaling

_DEFAULT_THETA = 10000.0
"""Source: transformers, LlamaConfig; llama.cpp assumes the same."""

_YARN_FIXED: dict[str, float | None] = {
    "attention_factor": None,
    "attn_factor": None,
    "extrapolation_factor": None,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": None,
    "mscale_all_dim": None,
}
"""YaRN keys and the values that llama.cpp assumes. Source: llama.cpp, src/llama-context.cpp."""


def read_rope_theta(config: Config) -> float:
    """The base of the rotary frequencies."""
    theta = config.number("rope_theta", _DEFAULT_THETA)
    if "rope_parameters" in config:
        theta = config.section("rope_parameters").number("rope_theta", theta)
    if theta <= 0:
        raise CheckpointError(f"{config.file}: key 'rope_theta' is {theta:g}, needed: above 0")
    return theta


def read_rope_scaling(config: Config) -> RopeScaling | None:
    """Scaling of rotary positions, in the words of any transformers release.

    They are `rope_scaling` {type, factor}, later {rope_type, ...}, and `rope_parameters` from
    release 5 on.

    Raises: UnsupportedModelError for a kind or key that GGUF cannot say.
    """
    key = next((k for k in ("rope_parameters", "rope_scaling") if k in config), None)
    if key is None:
        return None
    section = config.section(key)
    kind = section.text("rope_type", section.text("type", "default"))
    refuse_partial_rotary(section)
    if kind == "default":
        return None
    if kind in {"linear", "dynamic"}:
        return RopeScaling(
            kind="linear" if kind == "linear" else "dynamic", factor=_factor(section)
        )
    if kind == "yarn":
        return _read_yarn(section, config.positive("max_position_embeddings"))
    if kind == "llama3":
        return _read_llama3(section)
    raise UnsupportedModelError(
        f"{section.file}: key 'rope_type' is '{kind}'; the 'llama' exporter knows linear, dynamic, "
        "yarn and llama3"
    )


def rope_fields(arch: str, spec: DecoderSpec) -> tuple[GgufField, ...]:
    """Base and scaling of the rotary positions.

    `dynamic` has no key: up to the model's context length it changes nothing, and longer
    contexts are not run. `llama3` is a tensor, see `rope_freqs_tensor`.
    """
    base = GgufField(key=f"{arch}.rope.freq_base", value=spec.rope_theta, kind="FLOAT32")
    scaling = spec.rope_scaling
    if scaling is None or scaling.kind not in {"linear", "yarn"}:
        return (base,)
    prefix = f"{arch}.rope.scaling"
    fields = [
        GgufField(key=f"{prefix}.type", value=scaling.kind, kind="STRING"),
        GgufField(key=f"{prefix}.factor", value=scaling.factor, kind="FLOAT32"),
    ]
    if scaling.kind == "yarn":
        key = f"{prefix}.original_context_length"
        fields.append(GgufField(key=key, value=scaling.original_context_tokens, kind="UINT32"))
    return (*fields, base)


def rope_freqs_tensor(spec: DecoderSpec) -> tuple[GgufTensor, ...]:
    """The one tensor that holds `llama3` scaling; none for the other kinds."""
    if spec.rope_scaling is None or spec.rope_scaling.kind != "llama3":
        return ()
    scaling = spec.rope_scaling

    def transform(values: list[Array]) -> Array:
        assert not values
        return llama3_factors(scaling, spec.rope_theta, spec.head_dim)

    return (
        GgufTensor(
            name="rope_freqs.weight", sources=(), shape=(spec.head_dim // 2,), transform=transform
        ),
    )


def llama3_factors(scaling: RopeScaling, theta: float, head_dim: int) -> Array:
    """What each rotary frequency is divided by.

    Shapes: -> f32[head_dim / 2].
    Source: llama.cpp, conversion/llama.py, LlamaModel.generate_extra_tensors; torch computes it
    there in float32, and the last bit depends on that.
    """
    import torch

    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    context = scaling.original_context_tokens
    assert low is not None
    assert high is not None
    assert context is not None
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32)
    factors = []
    for freq in 1.0 / (theta ** (steps / head_dim)):
        wavelength = 2 * math.pi / freq
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(scaling.factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(float(1 / ((1 - smooth) / scaling.factor + smooth)))
    return np.array(factors, np.float32)


def refuse_partial_rotary(config: Config) -> None:
    """Raise UnsupportedModelError where only a part of each head is turned."""
    rotary = config.number("partial_rotary_factor", 1.0)
    if rotary != 1.0:
        raise UnsupportedModelError(
            f"{config.file}: key 'partial_rotary_factor' is {rotary:g}; the 'llama' exporter "
            "turns whole heads only"
        )


def _read_yarn(section: Config, context_tokens: int) -> RopeScaling:
    for key, assumed in _YARN_FIXED.items():
        if key in section and section.number(key) != assumed:
            raise UnsupportedModelError(
                f"{section.file}: key '{key}' is {section.number(key):g}; the exporter knows YaRN "
                f"with {'no such key' if assumed is None else f'{assumed:g}'}"
            )
    if not section.flag("truncate", True):
        raise UnsupportedModelError(
            f"{section.file}: key 'truncate' is false; llama.cpp rounds YaRN's range to whole "
            "dimensions"
        )
    return RopeScaling(
        kind="yarn",
        factor=_factor(section),
        original_context_tokens=section.positive(
            "original_max_position_embeddings", context_tokens
        ),
    )


def _read_llama3(section: Config) -> RopeScaling:
    low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
    if high <= low:
        raise CheckpointError(
            f"{section.file}: high_freq_factor {high:g} must be above low_freq_factor {low:g}"
        )
    return RopeScaling(
        kind="llama3",
        factor=_factor(section),
        original_context_tokens=section.positive("original_max_position_embeddings"),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _factor(section: Config) -> float:
    factor = section.number("factor")
    if factor < 1:
        raise CheckpointError(f"{section.file}: key 'factor' is {factor:g}, needed: at least 1")
    return factor
