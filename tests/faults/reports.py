"""What users of other exporters reported, and the check that would have caught it here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A report: where, what happened, the rung that sees it, and the faults that show so."""

    where: str
    symptom: str
    rung: str
    faults: tuple[str, ...] = ()
    """Names of planted faults."""
    instead: str = ""
    """What holds it where nothing can be planted."""


REPORTS = (
    Reported(
        where="ggml-org/llama.cpp PR 6364",
        symptom="a residual missing in MobileVLM V2's projector",
        rung="tower",
        faults=("LDPv2 residual dropped",),
    ),
    Reported(
        where="ggml-org/llama.cpp PR 11292",
        symptom="MobileVLM V2 converts and runs, and the answer ignores the image",
        rung="logits",
        faults=("image ignored", "tower ignores the picture"),
    ),
    Reported(
        where="ggml-org/llama.cpp 16776, 16806",
        symptom="resize and tiling unlike the processor of SmolVLM2",
        rung="pixels",
        faults=("resize kernel", "no antialiasing", "another input size"),
    ),
    Reported(
        where="ggml-org/llama.cpp 13050, 17290, 8037",
        symptom="worse than transformers, more so on large images",
        rung="pixels",
        faults=("crop in place of pad", "stretch in place of pad", "pad colour"),
    ),
    Reported(
        where="ggml-org/llama.cpp 12538",
        symptom="accuracy of a fine-tune from 99 % to 50 % after conversion",
        rung="weights",
        faults=("decoder of another checkpoint", "tower of another checkpoint"),
    ),
    Reported(
        where="ggml-org/llama.cpp 29251",
        symptom="image embeddings several times outside the original's own noise",
        rung="tower",
        faults=("GELU variant in the tower", "LayerNorm epsilon", "GELU variant in the projector"),
    ),
    Reported(
        where="ggml-org/llama.cpp tools/mtmd/tests.sh",
        symptom="MobileVLM-3B disabled for its chat template",
        rung="prompt",
        faults=("chat template in the decoder's file", "system prompt missing"),
    ),
    Reported(
        where="ggml-org/llama.cpp 5093",
        symptom="a doubled turn of the assistant in the prompt",
        rung="prompt",
        faults=("role of the assistant doubled",),
    ),
    Reported(
        where="alibaba/MNN 3332, 3358, 4375, 4387, 4427, 4485",
        symptom="own export gives unrelated or repeated text",
        rung="weights",
        faults=("q and k rows not permuted", "rope base", "stop token ignored"),
    ),
    Reported(
        where="alibaba/MNN PR 4595",
        symptom="preprocessing aligned by hand",
        rung="pixels",
        faults=("channel order", "mean and std of another model", "pixels not divided by 255"),
    ),
    Reported(
        where="alibaba/MNN documentation",
        symptom="an older engine loads a newer export and answers wrongly",
        rung="open",
        instead="minimum_runtime in bundle.json: tests/runtimes/test_opening.py",
    ),
    Reported(
        where="mlc-ai/mlc-llm 3205, 3426, 3456",
        symptom="the CLIP tower without its attention scale, and a norm never applied",
        rung="tower",
        faults=(
            "attention scale missing",
            "norm before the layers missing",
            "a norm applied after the selected layer",
        ),
    ),
    Reported(
        where="pytorch/executorch 5929",
        symptom="a delegate computes something else",
        rung="tower",
        faults=("softmax over the wrong axis", "bias of one projection missing"),
    ),
    Reported(
        where="Blaizzy/mlx-vlm 1615, 1618, 1639",
        symptom="checkpoints quantized by one release are garbage",
        rung="weights",
        faults=("scale bytes of one block flipped", "codes of one block flipped"),
    ),
    Reported(
        where="Blaizzy/mlx-vlm 1163, PR 1098",
        symptom="float16 overflow to NaN in the tower; pixels cast to whole numbers",
        rung="tower",
        faults=("float16 overflow in one layer", "pixels as whole numbers"),
    ),
    Reported(
        where="apple/ml-fastvlm 55, apple/coremltools PR 2669, unum-cloud/uform 50",
        symptom="int8 wrong where float16 is right, a mask constant turns all to NaN, float16 "
        "scores near nothing in Core ML",
        rung="tower",
        faults=("float16 overflow in one layer", "one value infinite"),
    ),
    Reported(
        where="NVIDIA/TensorRT-Edge-LLM 185",
        symptom="drift by layer, the worst token at 0.675 while the mean looks well",
        rung="tower",
        faults=("CLS kept", "position embedding shifted by one"),
    ),
    Reported(
        where="intel/auto-round 1312, 1371; vllm-omni 2686; llm-compressor 2072",
        symptom="the tower quantized by mistake; the same answer for any image",
        rung="weights",
        faults=(
            "tower quantized by mistake",
            "one projection quantized",
            "embeddings of another picture kept",
            "keys and values of another picture kept",
        ),
    ),
    Reported(
        where="JamePeng/llama-cpp-python 152",
        symptom="another input size than the server's",
        rung="pixels",
        faults=("another input size",),
    ),
    Reported(
        where="showlab/ShowUI 61; OpenBMB/MiniCPM-V 447",
        symptom="places in the picture lost, even without quantization",
        rung="tower",
        faults=("position embedding transposed", "position embedding mirrored"),
    ),
    Reported(
        where="unslothai/unsloth 5347; gpustack 2261; VisionCaptioner 13",
        symptom="the tower of another model beside the LLM",
        rung="tower",
        faults=("tower of another checkpoint", "projector of another checkpoint"),
    ),
    Reported(
        where="ggml-org/llama.cpp docs/multimodal/MobileVLM.md",
        symptom="a newer build is 15 times slower and answers otherwise",
        rung="text",
        faults=("second best token taken",),
        instead="speed: `bench` and `check --history`",
    ),
    Reported(
        where="google-ai-edge/LiteRT-LM README",
        symptom="a rebuilt tokenizer differs on one string in a hundred",
        rung="prompt",
        faults=("tokenizer of a sibling model", "no blank before the first word"),
    ),
    Reported(
        where="ikawrakow/ik_llama.cpp PR 1367, ggml-org/llama.cpp 11430",
        symptom="rows that no block divides are quantized unchecked",
        rung="weights",
        faults=("one tensor coarser than planned",),
        instead="schemes fall back by a rule, and the plan says so: tests/quantize/test_layouts.py",
    ),
    Reported(
        where="mlc-ai/mlc-llm 3210, microsoft/onnxruntime-genai, mit-han-lab/llm-awq",
        symptom="quality below other exports at the same width, calibrated without images",
        rung="logits",
        faults=("KV cache in 4 bits",),
        instead="statistics come from image and text: tests/device_tests/test_calibration.py",
    ),
)
