"""MobileVLM and MobileVLM V2 as the authors run them, in float32 on the CPU.

Tower and decoder are transformers' own layers, tokenizer and image processor are its slow ones;
the projectors stand in `_projectors`. Reads config.json by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mllm_export.checkpoint import INSIDE, Checkpoint
from mllm_export.config import read_json_object

if TYPE_CHECKING:
    from mllm_export.device_tests.references._llava import LlavaReference


def mobilevlm_reference(checkpoint: Checkpoint, precision: str = "float32") -> LlavaReference:
    """The original model. Configs and tokenizer are read now, weights when they are needed.

    `precision` other than float32 names a torch dtype: for measuring the noise floor.
    """
    import torch
    from transformers import LlamaTokenizer

    from mllm_export.device_tests.reference_tower import REFERENCE_TOWERS
    from mllm_export.device_tests.references._flat_config import flat_tower
    from mllm_export.device_tests.references._llama import llama
    from mllm_export.device_tests.references._llava import LlavaReference, Parts

    config = checkpoint.config
    kind = config.text("mm_projector_type")
    # The authors' loader puts the tower's own folder over the checkpoint's copy unless the
    # projector's type says V2. Source: mobilevlm/model/mobilevlm.py, load_pretrained_model.
    tower = flat_tower(checkpoint, "v2" not in kind and checkpoint.asked != INSIDE)
    folder = checkpoint.tower.path if checkpoint.tower else None
    return LlavaReference(
        Parts(
            read=checkpoint.read,
            tower=tower,
            projector=kind,
            widths=(config.positive("mm_hidden_size"), config.positive("hidden_size")),
            decoder=llama(read_json_object(checkpoint.path / "config.json"), config),
            tokenizer=LlamaTokenizer.from_pretrained(checkpoint.path, local_files_only=True),
            processor=REFERENCE_TOWERS[tower.kind].processor(folder, tower.config),
            pads=config.text("image_aspect_ratio", "") == "pad",
            stop="</s>",
            dtype=getattr(torch, precision),
        )
    )


REFERENCE = mobilevlm_reference
