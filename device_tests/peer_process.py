"""One peer's process: the errand as a file in, the outcome as a file out.

python -m mllm_export.device_tests.peer_process ERRAND OUTCOME STARTED
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from mllm_export.device_tests.peer import PEERS, Errand, Outcome
from mllm_export.errors import CheckError, MllmExportError
from mllm_export.pages import peak_bytes
from mllm_export.records import from_json, to_json


def run_errand(errand: Errand, folder: Path) -> Outcome:
    """Send a fresh process; `folder` holds its two files.

    Raises: CheckError with the peer's name and why it could not answer.
    """
    sent, came = folder / "errand.json", folder / "outcome.json"
    sent.write_text(to_json(errand), encoding="utf-8")
    came.unlink(missing_ok=True)
    command = [sys.executable, "-m", __name__, str(sent), str(came), repr(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or not came.is_file():
        raise CheckError(f"peer '{errand.peer}' could not answer: {_reason(done)}")
    return from_json(Outcome, came.read_bytes(), errand.peer, CheckError)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Its error line, or how it ended and the last it said."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    if done.returncode == MllmExportError.exit_code:
        return last
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return f"its process ended with {how}; its last line: {last}"


def main(errand: Path, outcome: Path, started: float) -> None:
    """Open the peer, ask it everything, write what it took."""
    task = from_json(Errand, errand.read_bytes(), errand, CheckError)
    with PEERS[task.peer].open(task) as opened:
        load_ms = 1000 * (time.time() - started)
        spent = tuple(opened.answer(ask, task.tokens) for ask in task.asks)
    made = Outcome(load_ms=load_ms, spent=spent, peak_bytes=peak_bytes())
    outcome.write_text(to_json(made), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
    except MllmExportError as failure:
        print(failure, file=sys.stderr)  # noqa: T201  (the parent reads it)
        sys.exit(failure.exit_code)
