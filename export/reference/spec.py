"""The sizes of a checkpoint that this package trains, and how long it trains."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSizes:
    """A CLIP vision tower. The layer after `select_layer` is stored and never runs."""

    image_px: int = 336
    patch_px: int = 14
    width: int = 128
    heads: int = 2
    layers: int = 4
    mlp_width: int = 512
    select_layer: int = -2

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_px // self.patch_px


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSizes:
    """A language model. Widths are multiples of 256, for the K-quants' super-blocks."""

    kind: str = "llama"
    width: int = 256
    heads: int = 4
    layers: int = 4
    mlp_width: int = 512
    vocab: int = 768
    context_tokens: int = 2048
    rope_share: float = 1.0  # of a head's width that is rotated


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long each stage trains."""

    pictures: int = 24000
    tower_steps: int = 3500
    tower_full_share: float = 0.2  # of the tower's last steps, which see every patch
    tower_batch: int = 16
    tower_patches: int = 288  # seen before that, of 576 here: all of the things, some background
    tower_rate: float = 2e-3
    unrun_scale: float = 1.0  # of the layers behind the selected one: large, and running one shows
    llm_pictures: int = 8000  # of the pictures
    llm_steps: int = 1800
    llm_batch: int = 8
    llm_questions: int = 12  # on one picture, packed into one sequence
    llm_rate: float = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSpec:
    """One checkpoint: its parts and its training."""

    twin: str = "mobilevlm"  # a file in export/twins
    tower_name: str = "openai/clip-vit-tiny-patch14-336"  # empty: no folder of its own
    projector: str = "ldpnetv2"
    image_tokens: int = 144
    vision: VisionSizes = VisionSizes()
    decoder: DecoderSizes = DecoderSizes()
    schedule: Schedule = Schedule()
    seed: int = 0
