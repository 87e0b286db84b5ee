"""Cobra as the authors run it, in float32 on the CPU.

Source: h-zhao1997/cobra, cobra/models/load.py, models/vlms/cobra.py, util/nn_utils.py and
models/backbones: towers from timm's files, projector and language model from the checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mllm_export.checkpoint import Checkpoint, Companion

if TYPE_CHECKING:
    from mllm_export.device_tests.references._cobra import CobraReference

_DINO, _SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_{}.webli"


def cobra_reference(checkpoint: Checkpoint, precision: str = "float32") -> CobraReference:
    """The original model. Configs and tokenizer are read now, weights when they are needed.

    `precision` other than float32 names a torch dtype: for measuring the noise floor.
    """
    import torch
    from transformers import AutoTokenizer

    from mllm_export.config import Config
    from mllm_export.device_tests.references._cobra import CobraReference, Eye, Parts
    from mllm_export.device_tests.references._mamba import mamba_config

    model = checkpoint.config.section("model")
    backbone = model.text("vision_backbone_id")
    size = backbone.rsplit("-", 1)[1].removesuffix("px")
    folders = {"dino": _DINO, "siglip": _SIGLIP.format(size)}
    if not backbone.startswith("dinosiglip"):
        del folders["dino"]
    eyes = []
    for name, published in folders.items():
        companion = Companion(name=name, published=published)
        folder = checkpoint.companion(companion)
        own = Config({"architecture": published.split(".")[0]}, str(folder.path))
        if (folder.path / "config.json").is_file() and "architecture" in folder.config:
            own = folder.config
        trunk = "visual.trunk." if "visual.trunk.pos_embed" in folder.tensors else ""
        eyes.append(
            Eye(
                name=f"{name}." if len(folders) > 1 else "",
                config=own,
                prefix=companion.prefix + trunk,
            )
        )
    llm = checkpoint.companion(
        Companion(name="llm", published=model.text("llm_backbone_id"), has_weights=False)
    )
    return CobraReference(
        Parts(
            read=checkpoint.read,
            eyes=tuple(eyes),
            size_px=int(size),
            projector=model.text("arch_specifier").split("+")[-1],
            llm=mamba_config(llm.config),
            has_head="model.llm_backbone.llm.lm_head.weight" in checkpoint.names,
            tokenizer=AutoTokenizer.from_pretrained(llm.path, local_files_only=True),
            is_chat=model.text("llm_backbone_id").endswith("zephyr"),
            dtype=getattr(torch, precision),
        )
    )


REFERENCE = cobra_reference
