"""The pure result of spec x target x recipe: what is built, tensor by tensor."""

from __future__ import annotations

from typing import Literal

from mllm_export.frontier import FrontierPoint
from mllm_export.kv_cache import KvType
from mllm_export.records import record
from mllm_export.spec import ModelSpec

Role = Literal["tower", "text_tower", "decoder", "mmproj"]

Importance = Literal["none", "calibration", "file"]
"""Where an importance matrix comes from: sequences that the build runs, or a file."""


@record
class TensorPlan:
    """One stored tensor of an artifact."""

    name: str
    """Name inside the artifact."""
    sources: tuple[str, ...]
    """Names in the checkpoint; `tower:` stands for the tower's own folder."""
    shape: tuple[int, ...]
    """Row-major, as PyTorch gives it."""
    scheme: str
    """A file in quantize/layouts for GGUF (F32, F16, Q8_0, ...), in quantize/tower_schemes for
    ONNX (f32, w8a8, ...)."""
    size_bytes: int
    note: str = ""
    """Why the scheme differs from the recipe's, if it does."""


@record
class ArtifactPlan:
    """One file of the bundle, or a folder of files that belong together."""

    role: Role
    path: str
    format: str
    """A file in export/artifacts."""
    scheme: str
    """The recipe's word for the whole artifact, such as Q4_0 or w8a8."""
    tensors: tuple[TensorPlan, ...]
    deployment: Literal["", "iOS17", "iOS18", "macOS14", "macOS15"] = ""
    """For a Core ML program: the oldest system that runs it."""
    image_input: bool = False
    """For a Core ML program: whether it takes a picture in place of a tensor."""

    @property
    def size_bytes(self) -> int:
        """Predicted size of the stored tensors, without the file's own header."""
        return sum(tensor.size_bytes for tensor in self.tensors)


@record
class Plan:
    """Everything `build` needs to know besides the checkpoint's bytes."""

    spec: ModelSpec
    target: str
    recipe: str
    profile: str
    """The file of device_tests/profiles whose limits the checks use."""
    context_tokens: int
    vision_preset: str
    """Which of optimum's instruction-set presets quantizes the tower; empty where no product of
    it is in 8 bits."""
    tower_ranges: Literal["minmax", "percentile", "entropy"] = "minmax"
    """How calibration pictures give the range of static 8-bit activations."""
    tower_smoothing: bool = False
    """Whether outlying activations of 8-bit products are moved into the weights behind a norm."""
    needs_pictures: bool = False
    """Whether the build runs the tower on calibration pictures."""
    decoder_methods: tuple[str, ...] = ()
    """Files in quantize/methods that choose the decoder's values, in order."""
    decoder_importance: Importance = "none"
    """What weighs the errors of the decoder's columns."""
    kv_type: KvType = "f16"
    """How the device stores keys and values."""
    artifacts: tuple[ArtifactPlan, ...]
    dropped: tuple[str, ...]
    """Checkpoint tensors left out, each with its reason."""
    kv_cache_bytes: int
    device_memory_bytes: int
    """Predicted peak on the device: weights, KV cache, tower activations."""
    build_memory_bytes: int
    """Predicted peak of the build on this machine."""
    frontier: tuple[FrontierPoint, ...] = ()
    """What other budgets buy, smallest first, the plan's own among them; empty without one."""

    def artifact(self, role: Role) -> ArtifactPlan | None:
        """The artifact with that role, if it is planned."""
        return next((a for a in self.artifacts if a.role == role), None)

    @property
    def size_bytes(self) -> int:
        """Predicted size of all artifacts."""
        return sum(artifact.size_bytes for artifact in self.artifacts)
