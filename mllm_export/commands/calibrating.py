"""What a user gives to calibrate with: pictures and questions, an importance matrix, or both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_export.records import record

if TYPE_CHECKING:
    from mllm_export.commands.opening import Job
    from mllm_export.export.artifact import Calibrated
    from mllm_export.plan import Importance, Plan


@record
class Calibration:
    """The options --calibration and --imatrix."""

    questions: Path | None = None
    """A folder with questions.jsonl; None: the set of this package, where one is needed."""
    imatrix: Path | None = None

    @property
    def importance(self) -> Importance:
        """What it says of the decoder: the matrix where there is one."""
        if self.imatrix is not None:
            return "file"
        return "none" if self.questions is None else "calibration"

    def require(self, plan: Plan) -> None:
        """Open everything that was given or is needed, before a weight of the model is read.

        Raises: CheckError naming the line or picture, CalibrationError for a matrix that is none
        or another model's.
        """
        from mllm_export.device_tests.samples import read_calibration
        from mllm_export.quantize.imatrix import read_imatrix

        walks = plan.decoder_importance == "calibration"
        if plan.needs_pictures or walks or self.questions is not None:
            read_calibration(self.questions)
        if self.imatrix is not None:
            decoder = plan.artifact("decoder")
            columns = {row.name: row.shape[-1] for row in (decoder.tensors if decoder else ())}
            read_imatrix(self.imatrix).require_model(columns, str(self.imatrix))

    def tell_unused(self, job: Job, *, has_budget: bool) -> None:
        """Note what was given and changes nothing of this plan."""
        from mllm_export.terminal import print_note

        plan = job.plan
        measures = has_budget or job.recipe.tower_floor > 0
        calibrates = plan.needs_pictures or plan.decoder_importance == "calibration"
        if self.imatrix is not None and plan.decoder_importance != "file":
            print_note(f"--imatrix changes nothing: no layout of recipe '{plan.recipe}' uses it")
        if self.questions is not None and not (calibrates or measures):
            print_note(f"--calibration changes nothing: recipe '{plan.recipe}' calibrates nothing")

    def calibrated(self, job: Job) -> Calibrated:
        """What the build weighs the decoder with, where the plan says that it does."""
        from mllm_export.device_tests.decoder_calibration import observe_decoder
        from mllm_export.device_tests.samples import calibration_sha256
        from mllm_export.export.artifact import Calibrated

        if job.plan.decoder_importance != "calibration":
            return Calibrated(imatrix=self.imatrix)
        source = (job.checkpoint.path, job.checkpoint.asked)
        family = job.plan.spec.family
        return Calibrated(
            observe=partial(observe_decoder, source, family, self.questions),
            key=calibration_sha256(self.questions),
        )
