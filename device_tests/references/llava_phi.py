"""LLaVA-Phi and Mipha as the authors run them, in float32 on the CPU.

Source: zhuyiche/llava-phi, llava_phi/model/builder.py, which takes tower, projector and decoder
from the checkpoint alone, and the tokenizer and image processor from its folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mllm_export.checkpoint import Checkpoint

if TYPE_CHECKING:
    from mllm_export.device_tests.references._llava import LlavaReference


def llava_phi_reference(checkpoint: Checkpoint, precision: str = "float32") -> LlavaReference:
    """The original model. Configs and tokenizer are read now, weights when they are needed.

    `precision` other than float32 names a torch dtype: for measuring the noise floor.
    """
    import torch
    from transformers import AutoTokenizer

    from mllm_export.device_tests.reference_tower import REFERENCE_TOWERS, TowerSource
    from mllm_export.device_tests.references._llava import LlavaReference, Parts
    from mllm_export.device_tests.references._phi import phi

    config = checkpoint.config
    sections = config.section("vision_config")
    tower, projector = sections.section("vision_tower"), sections.section("mm_projector")
    # The module that holds tower and projector is the decoder's own, whatever it is called.
    owner = "transformer." if "transformer.embd.wte.weight" in checkpoint.names else "model."
    prefix = f"{owner}vision_tower."
    # Mipha's builder goes by this word. Source: mipha/model/mipha_arch.py, MiphaMetaModel.
    kind = "siglip" if "siglip" in tower.text("vision_model_name_or_path", "") else "clip"
    return LlavaReference(
        Parts(
            read=checkpoint.read,
            tower=TowerSource(
                kind=kind,
                config=tower,
                read=lambda name: checkpoint.read(prefix + name),
                prefix=prefix,
                select_layer=tower.integer("mm_vision_select_layer"),
                feature=tower.text("mm_vision_select_feature"),
            ),
            projector=projector.text("mm_projector_type"),
            projector_names=(("model.mm_projector.", f"{owner}mm_projector."),),
            widths=(projector.positive("mm_hidden_size"), projector.positive("hidden_size")),
            decoder=phi(config, checkpoint.names),
            tokenizer=AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True),
            processor=REFERENCE_TOWERS[kind].processor(checkpoint.path, tower),
            pads=config.text("image_aspect_ratio", "") == "pad",
            stop="<|endoftext|>",
            dtype=getattr(torch, precision),
        )
    )


REFERENCE = llava_phi_reference
