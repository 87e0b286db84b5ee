"""Phi-2: one LayerNorm, attention and MLP side by side, partial rotary, biases, GELU by tanh.

Source: llama.cpp, conversion/phi.py, Phi2Model, and src/models/phi2.cpp; transformers,
models/phi/modeling_phi.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from mllm_export.config import Config
from mllm_export.errors import CheckpointError, UnsupportedModelError
from mllm_export.export.decoders._phi_layouts import (
    INTERLEAVED,
    LAYOUTS,
    PACKED,
    SPLIT,
    PhiLayout,
    recognise,
)
from mllm_export.export.decoders._rope import read_rope_theta
from mllm_export.export.parts import Array, GgufField, GgufTensor
from mllm_export.quantize.method import Fold
from mllm_export.spec import DecoderSpec
from mllm_export.weights import Drop, Shape

_TANH_GELU = {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"}
"""Names of one function in transformers; llama.cpp's GELU is the same one."""

_KINDS = ("weight", "bias")
_PARTS = {"attn_q": 0, "attn_k": 1, "attn_v": 2}


class Phi:
    """Parameter names are the published ones, of whichever layout the checkpoint has."""

    def read_spec(self, config: Config, names: Collection[str] = ()) -> DecoderSpec:
        """Sizes from a PhiConfig, or from the keys of `phi-msft`.

        Raises: CheckpointError for a missing or wrong key, UnsupportedModelError for a variant
        that llama.cpp's `phi2` architecture does not compute.
        """
        old_keys = "n_embd" in config and "hidden_size" not in config
        layout = recognise(names, PACKED if old_keys else SPLIT)
        spec = _read_old(config, layout) if old_keys else _read(config, layout)
        if layout == INTERLEAVED and spec.kv_heads != spec.heads:
            raise UnsupportedModelError(
                f"{config.file}: {spec.kv_heads} KV heads for {spec.heads} heads in the layout of "
                "transformers 4.36, which has as many of each"
            )
        return spec

    def parameters(self, spec: DecoderSpec) -> Mapping[str, Shape]:
        """Published name to shape."""
        return {
            source: shape if tensor.name.endswith("weight") else shape[:1]
            for tensor in self.tensors(spec)
            for source in tensor.sources
            for shape in (_published_shape(spec, source, tensor.shape),)
        }

    def drops(self, spec: DecoderSpec) -> tuple[Drop, ...]:
        """Patterns of published tensors that llama.cpp recomputes."""
        del spec
        why = "llama.cpp computes rotary frequencies itself"
        return (Drop(pattern="*.rotary_emb.inv_freq", why=why),)

    def tensors(self, spec: DecoderSpec) -> tuple[GgufTensor, ...]:
        """The file's tensors in upstream's order."""
        layout = LAYOUTS[spec.layout]
        table = (spec.vocab, spec.width)
        return (
            *_pair(layout.embedding, "token_embd", table, kinds=("weight",)),
            *(t for layer in range(spec.layers) for t in _layer_tensors(spec, layout, layer)),
            *_pair(layout.final_norm, "output_norm", (spec.width,)),
            *_pair(layout.head, "output", table),
        )

    def metadata(self, spec: DecoderSpec) -> tuple[GgufField, ...]:
        """Architecture and size keys, as upstream's converter writes them."""
        base = GgufField(key="phi2.rope.freq_base", value=spec.rope_theta, kind="FLOAT32")
        epsilon = GgufField(
            key="phi2.attention.layer_norm_epsilon", value=spec.norm_eps, kind="FLOAT32"
        )
        return (
            GgufField(key="general.architecture", value="phi2", kind="STRING"),
            _size("context_length", spec.context_tokens),
            _size("embedding_length", spec.width),
            _size("feed_forward_length", spec.mlp_width),
            _size("block_count", spec.layers),
            _size("attention.head_count", spec.heads),
            _size("attention.head_count_kv", spec.kv_heads),
            epsilon,
            _size("rope.dimension_count", spec.rotary_dim),
            # Upstream writes no base, for Phi-2's is llama.cpp's default.
            *((base,) if spec.rope_theta != 10000.0 else ()),
        )

    def folds(self, spec: DecoderSpec, layer: int | None) -> tuple[Fold, ...]:
        """One norm before attention and MLP, and values before the output projection.

        GELU stands between the MLP's two maps, so nothing can be moved through it. Where query,
        key and value are one published tensor, the values' rows have no name of their own.
        """
        layout = LAYOUTS[spec.layout]
        if layer is None:
            norm = tuple(f"{layout.final_norm}.{kind}" for kind in _KINDS)
            return (Fold(into=(f"{layout.head}.weight",), out_of=norm),)
        at = layout.layer.format(layer)
        names = {name: at + published for published, name in (*layout.attention, *layout.others)}
        behind = dict.fromkeys(names[name] for name in (*_PARTS, "attn_qkv") if name in names)
        found = [
            Fold(
                into=tuple(f"{name}.weight" for name in (*behind, names["ffn_up"])),
                out_of=tuple(f"{names['attn_norm']}.{kind}" for kind in _KINDS),
            )
        ]
        if spec.layout == SPLIT and spec.kv_heads == spec.heads:
            values = tuple(f"{names['attn_v']}.{kind}" for kind in _KINDS)
            found.append(Fold(into=(f"{names['attn_output']}.weight",), out_of=values))
        return tuple(found)

    def tiny(self) -> DecoderSpec:
        """A small twin whose rows K-quants can hold."""
        return DecoderSpec(
            kind="phi",
            width=256,
            layers=2,
            heads=4,
            kv_heads=4,
            head_dim=64,
            mlp_width=512,
            vocab=512,
            context_tokens=1024,
            norm_eps=1e-5,
            rope_theta=10000.0,
            rope_scaling=None,
            tied_head=False,
            rotary_dim=24,
            layout=SPLIT,
        )


def deinterleave(heads: int, part: int, values: list[Array]) -> Array:
    """Rows of q (0), k (1) or v (2) from the packed form of transformers 4.36.

    There each head has its q, k and v rows one after another.

    Shapes: [3 * heads * head_dim, ...] -> [heads * head_dim, ...].
    Source: transformers 4.36, models/phi/modeling_phi.py, PhiAttention.forward.
    """
    (rows,) = values
    split = rows.reshape(heads, 3, rows.shape[0] // heads // 3, *rows.shape[1:])
    return split[:, part].reshape(rows.shape[0] // 3, *rows.shape[1:])


def _as_stored(values: list[Array]) -> Array:
    (only,) = values
    return only


def _pair(
    published: str, name: str, shape: Shape, kinds: tuple[str, ...] = _KINDS
) -> list[GgufTensor]:
    """Weight and bias under their two names."""
    return [
        GgufTensor(
            name=f"{name}.{kind}",
            sources=(f"{published}.{kind}",),
            shape=shape if kind == "weight" else shape[:1],
            transform=_as_stored,
        )
        for kind in kinds
    ]


def _layer_tensors(spec: DecoderSpec, layout: PhiLayout, layer: int) -> list[GgufTensor]:
    shapes = _layer_shapes(spec)
    found: list[GgufTensor] = []
    for published, name in (*layout.attention, *layout.others):
        whole = layout.layer.format(layer) + published
        for tensor in _pair(whole, f"blk.{layer}.{name}", shapes[name]):
            transform = tensor.transform
            if spec.layout == INTERLEAVED and name in _PARTS:
                transform = partial(deinterleave, spec.heads, _PARTS[name])
            found.append(
                GgufTensor(
                    name=tensor.name,
                    sources=tensor.sources,
                    shape=tensor.shape,
                    transform=transform,
                )
            )
    return found


def _layer_shapes(spec: DecoderSpec) -> dict[str, Shape]:
    query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    return {
        "attn_q": (query, spec.width),
        "attn_k": (key, spec.width),
        "attn_v": (key, spec.width),
        "attn_qkv": (query + 2 * key, spec.width),
        "attn_output": (spec.width, query),
        "ffn_up": (spec.mlp_width, spec.width),
        "ffn_down": (spec.width, spec.mlp_width),
        "attn_norm": (spec.width,),
    }


def _published_shape(spec: DecoderSpec, source: str, stored: Shape) -> Shape:
    """As stored, but for the one tensor that three are cut from."""
    packed = spec.layout == INTERLEAVED and ".query_key_value." in source
    return (3 * stored[0], *stored[1:]) if packed else stored


def _size(key: str, value: int) -> GgufField:
    return GgufField(key=f"phi2.{key}", value=value, kind="UINT32")


def _read(config: Config, layout: str) -> DecoderSpec:
    _refuse_variants(config, "hidden_act")
    heads, width = config.positive("num_attention_heads"), config.positive("hidden_size")
    head_dim = _head_dim(config, width, heads)
    rotary = _section(config).number("partial_rotary_factor", 0.5)
    return DecoderSpec(
        kind="phi",
        width=width,
        layers=config.positive("num_hidden_layers"),
        heads=heads,
        kv_heads=config.positive("num_key_value_heads", heads),
        head_dim=head_dim,
        mlp_width=config.positive("intermediate_size"),
        vocab=config.positive("vocab_size"),
        context_tokens=config.positive("max_position_embeddings"),
        norm_eps=config.number("layer_norm_eps", 1e-5),
        rope_theta=read_rope_theta(config),
        rope_scaling=None,
        tied_head=False,
        rotary_dim=_even(config, int(rotary * head_dim)),
        layout=layout,
    )


def _section(config: Config) -> Config:
    """Where the rotary share stands: transformers 5 moved it into `rope_parameters`."""
    if "rope_parameters" in config and "partial_rotary_factor" not in config:
        return config.section("rope_parameters")
    return config


def _read_old(config: Config, layout: str) -> DecoderSpec:
    """The keys of `phi-msft`, whose null values stand for the usual ones."""
    _refuse_variants(config, "activation_function")
    heads, width = config.positive("n_head"), config.positive("n_embd")
    return DecoderSpec(
        kind="phi",
        width=width,
        layers=config.positive("n_layer"),
        heads=heads,
        kv_heads=config.positive("n_head_kv", heads),
        head_dim=_head_dim(config, width, heads),
        mlp_width=config.positive("n_inner", 4 * width),
        vocab=config.positive("vocab_size"),
        context_tokens=config.positive("n_positions"),
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        rope_theta=read_rope_theta(config),
        rope_scaling=None,
        tied_head=False,
        rotary_dim=_even(config, config.positive("rotary_dim")),
        layout=layout,
    )


def _even(config: Config, rotary_dim: int) -> int:
    if rotary_dim < 2 or rotary_dim % 2:
        raise CheckpointError(
            f"{config.file}: positions turn {rotary_dim} values of each head, needed: a number of "
            "pairs; is partial_rotary_factor or rotary_dim wrong?"
        )
    return rotary_dim


def _head_dim(config: Config, width: int, heads: int) -> int:
    if width % heads:
        raise CheckpointError(f"{config.file}: width {width} is not a multiple of {heads} heads")
    return width // heads


def _refuse_variants(config: Config, activation_key: str) -> None:
    activation = config.text(activation_key, "gelu_new")
    if activation not in _TANH_GELU:
        raise UnsupportedModelError(
            f"{config.file}: key '{activation_key}' is '{activation}'; llama.cpp's 'phi2' "
            f"architecture computes {', '.join(sorted(_TANH_GELU))} only"
        )
    for key in ("qk_layernorm", "tie_word_embeddings"):
        if config.flag(key, False):
            raise UnsupportedModelError(
                f"{config.file}: key '{key}' is true; llama.cpp's 'phi2' architecture has no such "
                "variant"
            )
    for key in ("rope_scaling", "rope_parameters"):
        scaling = config.section(key) if key in config else None
        if scaling and scaling.text("rope_type", scaling.text("type", "default")) != "default":
            raise UnsupportedModelError(
                f"{config.file}: key '{key}' asks for scaled positions; the 'phi' exporter has none"
            )


DECODER = Phi()
