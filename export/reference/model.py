"""The model as plain transformers modules."""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mllm_export.export.reference.spec import ReferenceSpec, VisionSizes
from mllm_export.export.reference.twin import TWINS, Parts

# Source: CLIP's preprocessor_config.json
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


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


class ReferenceModel(nn.Module):
    """Tower, projector and decoder; holds no logic beyond joining them."""

    def __init__(self, spec: ReferenceSpec) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(vision_config(spec.vision))
        self.projector = TWINS[spec.twin].new_projector(spec)
        self.decoder = TWINS[spec.twin].new_decoder(spec.decoder)
        self.select_layer = spec.vision.select_layer

    def features(self, pixels: Tensor) -> Tensor:
        """What the projector sees. Shapes: f32[B, 3, px, px] -> f32[B, N, width]."""
        made = self.tower(pixels, output_hidden_states=True)
        states: Tensor = made.hidden_states[self.select_layer]
        return states[:, 1:]

    def parts(self) -> Parts:
        """The tensors by part; position ids, a buffer of old versions, are no part of it."""
        tower = self.tower.state_dict()
        return Parts(
            tower={name: value for name, value in tower.items() if "position_ids" not in name},
            projector=dict(self.projector.state_dict()),
            decoder=dict(self.decoder.state_dict()),
        )


def normalized(pixels: Tensor) -> Tensor:
    """Shapes: u8[B, px, px, 3] -> f32[B, 3, px, px], as CLIP's processor scales them."""
    scale, shift = 1 / (255 * torch.tensor(STD)), -torch.tensor(MEAN) / torch.tensor(STD)
    planes = pixels.permute(0, 3, 1, 2).contiguous().float()
    return planes.mul_(scale[:, None, None]).add_(shift[:, None, None])


def round_to_bfloat16(module: nn.Module) -> None:
    """Round every parameter to what the checkpoint can store."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16().float())
