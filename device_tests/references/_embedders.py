"""Originals of encoders alone: transformers' CLIP and SigLIP, timm's ViTamin, in float32.

open_clip is not at hand: the text tower of ViTamin's release runs through transformers'
CLIPTextModelWithProjection, whose maths it shares (norm epsilon 1e-5, exact GELU, causal mask,
the row of the largest id, projection without bias), with its packed q, k and v taken apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from mllm_export.checkpoint import Checkpoint
from mllm_export.config import read_json_object
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.references._fill import float32_tensor

if TYPE_CHECKING:
    from PIL import Image

State = dict[str, torch.Tensor]


class EmbedderOriginal(Protocol):
    """An original encoder: pictures and texts to embeddings before they are normalised.

    Of a picture also its patches, as the original's own last hidden state has them.
    """

    title: str
    bias: float

    @property
    def scale(self) -> float:
        """What cosines are multiplied by."""

    def pixels(self, image: Image.Image) -> Floats:
        """The original processor. Shapes: f32[1, 3, S, S]."""

    def embed_image(self, pixels: Floats) -> Floats:
        """f32[1, 3, S, S] to f32[E]."""

    def embed_patches(self, pixels: Floats) -> Floats:
        """f32[1, 3, S, S] to f32[N, D], the class token left out."""

    def ids(self, text: str) -> list[int]:
        """The original tokenizer, padded."""

    def embed_text(self, ids: list[int]) -> Floats:
        """Ids to f32[E]."""

    def stored(self) -> dict[str, tuple[Floats, bool]]:
        """Tensor of the checkpoint to its values, and whether a linear map's."""

    def positions(self) -> Floats:
        """The table `pos_embed` as published, where there is one."""


def load_original(
    checkpoint: Checkpoint, weights: Mapping[str, Floats] | None = None
) -> EmbedderOriginal:
    """By config.json, read by itself; `weights` stand in for tensors of the same names."""
    plain = read_json_object(checkpoint.path / "config.json")
    if plain.get("model_type") == "clip":
        return ClipOriginal(checkpoint, plain, weights)
    if plain.get("model_type") == "siglip":
        return SiglipOriginal(checkpoint, plain, weights)
    return VitaminOriginal(checkpoint, plain, weights)


def _state(checkpoint: Checkpoint, weights: Mapping[str, Floats] | None) -> State:
    names = [name for name in checkpoint.shapes(False) if not name.endswith("position_ids")]
    other = weights or {}
    read = checkpoint.read
    return {n: float32_tensor(other[n] if n in other else read(n)) for n in names}


class _Pair:
    """What CLIPModel and SiglipModel share."""

    title: str
    _model: Any  # CLIPModel or SiglipModel
    _processor: Any
    _tokenizer: Any
    _tokens: int
    _prefix_tokens: int
    bias = 0.0

    @property
    def scale(self) -> float:
        return float(self._model.logit_scale.detach().exp())

    def pixels(self, image: Image.Image) -> Floats:
        made = self._processor(image.convert("RGB"), return_tensors="np")["pixel_values"]
        return np.asarray(made, np.float32)

    @torch.inference_mode()
    def embed_image(self, pixels: Floats) -> Floats:
        made = self._model.get_image_features(torch.from_numpy(pixels))
        return np.asarray(made[0].numpy())

    @torch.inference_mode()
    def embed_patches(self, pixels: Floats) -> Floats:
        made = self._model.vision_model(torch.from_numpy(pixels)).last_hidden_state
        return np.asarray(made[0, self._prefix_tokens :].numpy())

    def ids(self, text: str) -> list[int]:
        found = self._tokenizer(
            text, padding="max_length", truncation=True, max_length=self._tokens
        ).input_ids
        return [int(i) for i in found]

    @torch.inference_mode()
    def embed_text(self, ids: list[int]) -> Floats:
        made = self._model.get_text_features(torch.tensor([ids]))
        return np.asarray(made[0].numpy())

    def stored(self) -> dict[str, tuple[Floats, bool]]:
        return _module_tensors(self._model, {})

    def positions(self) -> Floats:
        raise AssertionError("no such name in transformers' layout")


class ClipOriginal(_Pair):
    """CLIPModel with the checkpoint's weights."""

    title = "original weights in float32, transformers' CLIPModel"
    _prefix_tokens = 1

    def __init__(
        self,
        checkpoint: Checkpoint,
        plain: Mapping[str, object],
        weights: Mapping[str, Floats] | None,
    ) -> None:
        """Everything is read now."""
        from transformers import CLIPConfig, CLIPModel

        config = CLIPConfig(**dict(plain))
        self._tokenizer = _clip_tokenizer(checkpoint.path)
        # Published configs say 2, which makes CLIPModel look for the largest id instead.
        config.text_config.eos_token_id = 2
        self._model = _filled(CLIPModel(config), _state(checkpoint, weights))
        self._processor = _clip_processor(checkpoint.path, config.vision_config.image_size)
        self._tokens = config.text_config.max_position_embeddings


class SiglipOriginal(_Pair):
    """SiglipModel with the checkpoint's weights."""

    title = "original weights in float32, transformers' SiglipModel"
    _prefix_tokens = 0

    def __init__(
        self,
        checkpoint: Checkpoint,
        plain: Mapping[str, object],
        weights: Mapping[str, Floats] | None,
    ) -> None:
        """Everything is read now."""
        from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

        config = SiglipConfig(**dict(plain))
        self._tokenizer = _siglip_tokenizer(checkpoint.path)
        self._model = _filled(SiglipModel(config), _state(checkpoint, weights))
        side = config.vision_config.image_size
        self._processor = SiglipImageProcessor(size={"height": side, "width": side}, resample=3)
        self._tokens = config.text_config.max_position_embeddings
        self.bias = float(self._model.logit_bias.detach())


class VitaminOriginal:
    """timm's ViTamin, and a CLIP text tower for releases in open_clip's layout."""

    title = (
        "original weights in float32, timm's ViTamin; text through transformers' "
        "CLIPTextModelWithProjection, open_clip's own code not being at hand"
    )
    bias = 0.0

    def __init__(
        self, checkpoint: Checkpoint, plain: Mapping[str, Any], weights: Mapping[str, Floats] | None
    ) -> None:
        """Everything is read now."""
        state = _state(checkpoint, weights)
        cfg = plain.get("vision_cfg") or {}
        self._trunk = "visual.trunk." if cfg else ""
        self._state = state
        name = str(plain.get("architecture") or cfg["timm_model_name"]).split(".")[0]
        size_px = (plain.get("model_args") or {}).get("img_size", int(name.rsplit("_", 1)[1]))
        self._model = _vitamin(name, size_px, state, self._trunk)
        self._processor = _clip_processor(checkpoint.path, size_px)
        self._text: Any = None
        if cfg:
            self._tokenizer = _clip_tokenizer(checkpoint.path)
            self._text = _open_clip_text(plain, state)
            self._tokens = int(plain["text_cfg"].get("context_length", 77))

    @property
    def scale(self) -> float:
        """The exponential of the stored logarithm."""
        found = self._state.get("logit_scale")
        return 1.0 if found is None else float(found.exp())

    def pixels(self, image: Image.Image) -> Floats:
        """open_clip's evaluation transform: shortest edge, centre, CLIP's constants."""
        made = self._processor(image.convert("RGB"), return_tensors="np")["pixel_values"]
        return np.asarray(made, np.float32)

    @torch.inference_mode()
    def embed_image(self, pixels: Floats) -> Floats:
        """Through timm's head."""
        return np.asarray(self._model(torch.from_numpy(pixels))[0].numpy())

    @torch.inference_mode()
    def embed_patches(self, pixels: Floats) -> Floats:
        """Timm's forward_features, whose prefix ViTamin lacks."""
        made = self._model.forward_features(torch.from_numpy(pixels))
        return np.asarray(made[0, self._model.num_prefix_tokens :].numpy())

    def ids(self, text: str) -> list[int]:
        """Source: open_clip, tokenizer.py: start, text, end, zeros."""
        found = self._tokenizer(text, truncation=True, max_length=self._tokens).input_ids
        return [int(i) for i in found] + [0] * (self._tokens - len(found))

    @torch.inference_mode()
    def embed_text(self, ids: list[int]) -> Floats:
        """The row of the largest id, projected."""
        return np.asarray(self._text(torch.tensor([ids])).text_embeds[0].numpy())

    def positions(self) -> Floats:
        """From the file: the module's are resized to its image."""
        return np.asarray(self._state[f"{self._trunk}pos_embed"].numpy())

    def stored(self) -> dict[str, tuple[Floats, bool]]:
        """The trunk from timm's modules, all else from the file."""
        outer = {"head.weight": "visual.head.proj.weight"} if self._trunk else {}
        found = _module_tensors(self._model, outer, self._trunk)
        if self._trunk:
            del found["visual.trunk.head.bias"]
        for name, values in self._state.items():
            if name.startswith("visual."):
                continue
            linear = values.ndim == 2 and name.endswith("weight") and "embedding" not in name
            if self._trunk:
                found.setdefault(name, (np.asarray(values.numpy()), linear))
        return found


def _filled(model: Any, state: State) -> Any:
    missing, left = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    assert not missing, f"the original lacks {missing}"
    assert not left, f"the original has no place for {left}"
    return model.eval()


def _vitamin(name: str, size_px: int, state: State, trunk: str) -> Any:
    """Timm's model at its published size, or at the size that the trunk's tensors have."""
    import timm
    from timm.layers.pos_embed import resample_abs_pos_embed

    own = {n.removeprefix(trunk): v for n, v in state.items() if n.startswith(trunk)}
    head = state["visual.head.proj.weight"] if trunk else own["head.weight"]
    own["head.weight"] = head
    own.setdefault("head.bias", torch.zeros(head.shape[0]))
    depth = 1 + max(int(n.split(".")[1]) for n in own if n.startswith("blocks."))
    model = timm.create_model(name, num_classes=head.shape[0], img_size=size_px, depth=depth)
    if "pos_embed" in own:
        side = size_px // 16
        own["pos_embed"] = resample_abs_pos_embed(
            own["pos_embed"], [side, side], num_prefix_tokens=0
        )
    return _filled(model, own)


def _open_clip_text(plain: Mapping[str, Any], state: State) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = plain["text_cfg"]
    below = "text." if "text.token_embedding.weight" in state else ""
    config = CLIPTextConfig(
        hidden_size=sizes["width"], intermediate_size=4 * sizes["width"],
        num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"],
        vocab_size=sizes.get("vocab_size", 49408), projection_dim=plain["embed_dim"],
        max_position_embeddings=sizes.get("context_length", 77), hidden_act="gelu",
        layer_norm_eps=1e-5, eos_token_id=2, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    renamed: State = {}
    for name, values in state.items():
        if name.startswith(below) and not name.startswith("visual.") and name != "logit_scale":
            renamed.update(_as_transformers(name.removeprefix(below), values))
    return _filled(CLIPTextModelWithProjection(config), renamed)


_WHOLE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_INNER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def _as_transformers(name: str, values: torch.Tensor) -> State:
    """One of open_clip's tensors under transformers' names."""
    if name == "text_projection":
        return {"text_projection.weight": values.T.contiguous()}
    if name in _WHOLE:
        return {_WHOLE[name]: values}
    if name.endswith("attn_mask"):
        return {}
    _, _, index, rest = name.split(".", 3)
    at = f"text_model.encoder.layers.{index}."
    if "in_proj_" in rest:
        kind = rest.rsplit("_", 1)[1]
        parts = zip("qkv", values.chunk(3), strict=True)
        return {f"{at}self_attn.{letter}_proj.{kind}": part for letter, part in parts}
    inner, kind = rest.rsplit(".", 1)
    return {f"{at}{_INNER[inner]}.{kind}": values}


def _module_tensors(
    model: nn.Module, other: Mapping[str, str], prefix: str = ""
) -> dict[str, tuple[Floats, bool]]:
    found: dict[str, tuple[Floats, bool]] = {}
    for at, owner in model.named_modules():
        is_map = isinstance(owner, nn.Linear) or (
            isinstance(owner, nn.Conv2d) and owner.kernel_size == (1, 1)
        )
        for name, parameter in owner.named_parameters(recurse=False):
            whole = f"{at}.{name}" if at else name
            packed = name == "in_proj_weight"
            linear = (is_map and name == "weight") or packed
            found[other.get(whole, prefix + whole)] = (parameter.detach().numpy(), linear)
    return found


def _clip_processor(folder: Path, side: int) -> Any:
    from transformers import CLIPImageProcessor

    if (folder / "preprocessor_config.json").is_file():
        return CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    return CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


def _clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizerFast, PreTrainedTokenizerFast

    # What CLIPProcessor loads. The slow one differs on some accents and scripts, and OpenAI's own
    # also repairs mis-decoded text with ftfy.
    if (folder / "vocab.json").is_file():
        return CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>"
    )


def _siglip_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast, SiglipTokenizer

    if (folder / "spiece.model").is_file():
        return SiglipTokenizer(str(folder / "spiece.model"))
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>", pad_token="</s>"
    )
    return _WithEnd(fast)


class _WithEnd:
    """SigLIP's slow tokenizer puts </s> behind every text; a bare tokenizer.json does not."""

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def __call__(self, text: str, padding: str, truncation: bool, max_length: int) -> Any:
        del padding, truncation
        from types import SimpleNamespace

        end = self._fast.eos_token_id
        ids = self._fast(text, add_special_tokens=False).input_ids[: max_length - 1]
        row = [*ids, *([end] * (max_length - len(ids)))]
        return SimpleNamespace(input_ids=row)
