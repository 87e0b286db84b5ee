"""A check on a device as a report: the device rung alone, with what was sent and by whom it ran."""

from __future__ import annotations

from pathlib import Path

from mllm_export.bundle import Bundle
from mllm_export.device_tests.device import Link
from mllm_export.device_tests.on_device import Visited, check_on_device, read_golden
from mllm_export.device_tests.parity import limits_of
from mllm_export.device_tests.profile import Limits
from mllm_export.device_tests.stored import read_gguf
from mllm_export.device_tests.tower_file import TOWER_FILES
from mllm_export.progress import Progress
from mllm_export.report import ArtifactSize, Report


def device_report(
    bundle: Bundle,
    link: Link,
    *,
    evaluation: Path | None,
    questions: int,
    timeout_s: float,
    progress: Progress,
) -> Report:
    """Visit the device and judge what came back by the bundle's profile.

    Raises: DeviceError, BundleError when the check cannot be carried out.
    """
    visited = check_on_device(
        bundle,
        link,
        _limits(bundle),
        evaluation=evaluation,
        questions=questions,
        timeout_s=timeout_s,
        progress=progress,
    )
    manifest = bundle.manifest
    return Report(
        model=manifest.model.name,
        family=manifest.model.family,
        target=manifest.target,
        recipe=manifest.recipe,
        profile=manifest.profile,
        rungs=(visited.rung,),
        sizes=tuple(
            ArtifactSize(path=file.path, size_bytes=file.size_bytes) for file in manifest.files
        ),
        tools=visited.device.engines,
        notes=(_transfer(visited),),
    )


def _limits(bundle: Bundle) -> Limits:
    tower = TOWER_FILES[bundle.manifest.vision_engine].read(bundle.path("tower"))
    decoder, _ = read_gguf(bundle.path("decoder"))
    return limits_of(bundle, tower, decoder, read_golden(bundle).trained)


def _transfer(visited: Visited) -> str:
    sent = visited.sent
    return (
        f"sent: {sent.files} files, {sent.sent_bytes / (1 << 20):.1f} MiB in {visited.push_s:.1f} s"
        f"; {sent.kept} files were there already"
        + (f", {sent.resumed_bytes} bytes of a cut transfer too" if sent.resumed_bytes else "")
    )
