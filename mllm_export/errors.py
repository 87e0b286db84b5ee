"""Errors that a user can act on: one root, one subclass per thing the reader must do."""


class MllmExportError(Exception):
    """What was wrong, where (file, key, tensor), and the next step."""

    exit_code = 2
    """What the command ends with: 2, cannot be done as asked."""


class UnsupportedModelError(MllmExportError):
    """The checkpoint is sound, but a part of the model has no exporter here."""


class CheckpointError(MllmExportError):
    """A file of the checkpoint is missing, broken, unsafe, or does not fit its config."""


class SpecError(MllmExportError):
    """A model description contradicts itself."""


class PlanError(MllmExportError):
    """This model, target and recipe cannot go together as asked."""


class RecipeError(PlanError):
    """A recipe names a scheme or a tensor pattern that does not exist."""


class CalibrationError(PlanError):
    """An importance matrix or a calibration set is broken, or is not this model's."""


class TargetError(PlanError):
    """A target is unknown, or its file is not valid."""


class LayoutError(MllmExportError):
    """Rows cannot be stored in the layout asked for."""


class BuildError(MllmExportError):
    """An artifact could not be written: full disk, existing folder, failed tool."""


class DiskFullError(BuildError):
    """An artifact found no room; make some, and what was finished is taken up."""


class BundleError(MllmExportError):
    """A bundle is incomplete, changed since it was written, or needs another runtime."""


class ImageError(MllmExportError):
    """A picture cannot be opened, or is larger than the limit."""


class EngineError(MllmExportError):
    """An inference engine refused the model or the input."""


class CheckError(MllmExportError):
    """A check could not be carried out (not: was carried out and failed)."""


class DeviceError(MllmExportError):
    """A device cannot be reached, lacks what is needed, or was lost while it worked."""


class DeviceLostError(DeviceError):
    """The connection ended, or time ran out, before the command did."""

    def __init__(self, message: str, printed: bytes) -> None:
        super().__init__(message)
        self.printed = printed
        """What the command had written to its standard error by then."""


class CheckFailedError(MllmExportError):
    """A check was carried out and failed; the message names the first rung."""

    exit_code = 1
