"""Commands run as processes of this machine, with time-outs as our errors."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from mllm_export.device_tests.device import Completed
from mllm_export.errors import DeviceError, DeviceLostError


def run_process(words: Sequence[str], title: str, timeout_s: float, data: bytes = b"") -> Completed:
    """Run to the end.

    Raises: DeviceError when the program is missing or takes too long.
    """
    try:
        done = subprocess.run(
            list(words), input=data, capture_output=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError:
        raise DeviceError(f"{title}: '{words[0]}' is not installed on this machine") from None
    except subprocess.TimeoutExpired as late:
        raise DeviceLostError(
            f"{title} did not finish within {timeout_s:g} s; allow more with --timeout",
            late.stderr or b"",
        ) from None
    return Completed(code=done.returncode, out=done.stdout, err=done.stderr)
