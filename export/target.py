"""A device as data: what runs on it, how much memory it has, which instructions its CPU knows."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

from mllm_export.catalog import unknown
from mllm_export.errors import TargetError
from mllm_export.export.coreml_options import Deployment
from mllm_export.records import from_plain, record
from mllm_export.toml import read_toml


@record
class Rates:
    """What one core and the memory can do at most, for estimates."""

    core: str
    clock_mhz: int
    instructions_per_cycle: float
    """That enter the core's back end."""
    simd_per_cycle: float
    """Of 128 bits, or of 256 on x86."""
    loads_stores_per_cycle: float
    bandwidth_gb_s: float
    """Of the whole memory; one core alone reaches less."""
    source: str


@record
class Target:
    """One file of export/targets, or a TOML file of the user's."""

    name: str
    description: str
    arch: Literal["x86_64", "arm64"]
    system: Literal["linux", "android", "macos", "ios"]
    cpu_features: tuple[str, ...]
    """Features the artifacts rely on, as the kernel names them."""
    memory_mib: int
    """What a bundle may use at its peak."""
    threads: int
    formats: tuple[str, ...]
    """What a bundle holds, in order: files in export/artifacts."""
    vision_engine: str
    """A file in runtimes/vision."""
    decoder_engine: str
    """A file in runtimes/decoder."""
    vision_preset: str
    """optimum's instruction-set preset for INT8 towers."""
    deployment: Deployment | Literal[""] = ""
    """The oldest system that runs a Core ML tower; empty where there is none."""
    image_input: bool = False
    """Whether a Core ML tower takes a picture and normalises it itself."""
    context_tokens: int
    """KV cache the plan reckons with; never more than the model's own limit."""
    default_recipe: str
    rates: Rates | None = None
    """None where nothing is estimated."""
    source: str
    """Where memory, cores and features come from."""


def target_names() -> list[str]:
    """The built-in targets."""
    entries = files("mllm_export.export.targets").iterdir()
    return sorted(e.name[:-5] for e in entries if e.name.endswith(".toml"))


def load_target(name: str) -> Target:
    """A built-in target by name, or a file whose name ends in .toml.

    Raises: TargetError for an unknown name (with the near ones) or a wrong key.
    """
    if name.endswith(".toml"):
        path = Path(name)
        return from_plain(Target, read_toml(path, TargetError), name, TargetError)
    if name not in target_names():
        raise TargetError(unknown("target", name, target_names()))
    file = files("mllm_export.export.targets") / f"{name}.toml"
    return from_plain(Target, read_toml(file, TargetError), f"{name}.toml", TargetError)
