"""The model as plain transformers modules, and MobileVLM V2's projector."""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from mllm_export.export.reference.spec import DecoderSizes, ReferenceSpec, VisionSizes

# Source: CLIP's preprocessor_config.json
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class LDPv2(nn.Module):
    """MobileVLM V2's projector; parameter names are those of its checkpoints.

    Shapes: f32[B, 576, in_width] -> f32[B, 144, width].
    Source: Meituan-AutoML/MobileVLM, mobilevlm/model/vision_projector.py.
    """

    class _Mlp(nn.Module):
        def __init__(self, in_width: int, width: int) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width))

    class _Peg(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.peg = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width))

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.mlp = self._Mlp(in_width, width)
        self.peg = self._Peg(width)

    def forward(self, features: Tensor) -> Tensor:
        """Project, average 2 by 2, add the depthwise convolution."""
        rows: Tensor = self.mlp.mlp(features)
        side = round(rows.shape[1] ** 0.5)
        grid: Tensor = rows.transpose(1, 2).reshape(rows.shape[0], -1, side, side)
        grid = nn.functional.adaptive_avg_pool2d(grid, (12, 12))
        grid = self.peg.peg(grid) + grid
        return grid.flatten(2).transpose(1, 2)


def vision_config(sizes: VisionSizes) -> CLIPVisionConfig:
    """The tower's configuration in transformers' words."""
    return CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        image_size=sizes.image_px,
        patch_size=sizes.patch_px,
        projection_dim=sizes.width,
    )


def llama_config(sizes: DecoderSizes) -> LlamaConfig:
    """The decoder's configuration in transformers' words."""
    return LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        vocab_size=sizes.vocab,
        max_position_embeddings=sizes.context_tokens,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


class ReferenceModel(nn.Module):
    """Tower, projector and decoder; holds no logic beyond joining them."""

    def __init__(self, spec: ReferenceSpec) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(vision_config(spec.vision))
        width = spec.decoder.width
        self.projector = {"ldpnetv2": LDPv2}[spec.projector](spec.vision.width, width)
        self.decoder = {"llama": _llama}[spec.decoder.kind](spec.decoder)
        self.select_layer = spec.vision.select_layer

    def features(self, pixels: Tensor) -> Tensor:
        """What the projector sees. Shapes: f32[B, 3, 336, 336] -> f32[B, 576, width]."""
        made = self.tower(pixels, output_hidden_states=True)
        states: Tensor = made.hidden_states[self.select_layer]
        return states[:, 1:]


def _llama(sizes: DecoderSizes) -> LlamaForCausalLM:
    return LlamaForCausalLM(llama_config(sizes))


def normalized(pixels: Tensor) -> Tensor:
    """Shapes: u8[B, 336, 336, 3] -> f32[B, 3, 336, 336], as CLIP's processor scales them."""
    scale, shift = 1 / (255 * torch.tensor(STD)), -torch.tensor(MEAN) / torch.tensor(STD)
    planes = pixels.permute(0, 3, 1, 2).contiguous().float()
    return planes.mul_(scale[:, None, None]).add_(shift[:, None, None])


def round_to_bfloat16(module: nn.Module) -> None:
    """Round every parameter to what the checkpoint can store."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16().float())
