"""The ladder as a stage that can run in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

from mllm_export.bundle import Bundle, Manifest
from mllm_export.checkpoint import Asked, Checkpoint
from mllm_export.device_tests.parity import check
from mllm_export.device_tests.scoring import Metric
from mllm_export.diagnosis import Diagnosis
from mllm_export.evaluation import Evaluation
from mllm_export.plan import Plan
from mllm_export.progress import Progress
from mllm_export.report import Report
from mllm_export.runtimes.opening import is_small

Source = tuple[Path, Asked]
"""Where a checkpoint is: its folder, and what --vision-tower said."""

_WAIT_ASLEEP = ("OMP_WAIT_POLICY", "PASSIVE")
"""Read by OpenMP when torch and llama.cpp load it. Threads that spin while they wait for each
other take the cores from whatever else runs: the reference checkpoint's ladder took 103 s beside
other work, and 31 s with this."""


def check_stage(
    folder: Path,
    manifest: Manifest,
    source: Source | None,
    plan: Plan | None,
    evaluation: Path | None,
    float_tower: Path | None,
    golden: bool,
    progress: Progress,
) -> Report:
    """`parity.check` on what can be sent to another process; `golden` writes golden files too."""
    bundle = Bundle(folder, manifest)
    _settle_threads(bundle, source is not None)
    return check(
        bundle,
        None if source is None else Checkpoint(*source),
        plan=plan,
        evaluation=evaluation,
        float_tower=float_tower,
        golden=folder / "golden" if golden else None,
        progress=progress,
    )


def diagnose_stage(
    folder: Path,
    manifest: Manifest,
    source: Source,
    evaluation: Path | None,
    kv: str,
    progress: Progress,
) -> Diagnosis:
    """`diagnosis.find.diagnose` on what can be sent to another process."""
    from mllm_export.device_tests.diagnosis.find import diagnose

    bundle = Bundle(folder, manifest)
    _settle_threads(bundle, uses_torch=True)
    checkpoint = Checkpoint(*source)
    return diagnose(bundle, checkpoint, evaluation=evaluation, kv=kv, progress=progress)


def evaluate_stage(
    folder: Path,
    manifest: Manifest,
    source: Source | None,
    evaluation: Path,
    metric: Metric,
    answers: Path | None,
    max_tokens: int,
    progress: Progress,
) -> Evaluation:
    """`evaluate.evaluate` on what can be sent to another process."""
    from mllm_export.device_tests.evaluate import evaluate

    bundle = Bundle(folder, manifest)
    _settle_threads(bundle, uses_torch=source is not None)
    return evaluate(
        bundle,
        evaluation,
        checkpoint=None if source is None else Checkpoint(*source),
        metric=metric,
        answers=answers,
        max_tokens=max_tokens,
        progress=progress,
    )


def _settle_threads(bundle: Bundle, uses_torch: bool) -> None:
    if uses_torch and is_small(bundle.path("decoder")):
        import torch

        # Threads of a small model wait for each other longer than they compute.
        torch.set_num_threads(1)
    os.environ.setdefault(*_WAIT_ASLEEP)
