"""`make demo`: the reference checkpoint for this machine, checked, and three questions asked."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from pathlib import Path

OUT = Path("build") / "demo"


def this_target() -> str:
    """The built-in target that this machine is nearest to."""
    return "linux-arm64" if platform.machine() in {"aarch64", "arm64"} else "linux-x86_64"


def main() -> int:
    """Build, show, ask; returns the exit code."""
    from mllm_export.commands.build import build
    from mllm_export.commands.opening import reference_folder
    from mllm_export.runtimes import load
    from mllm_export.terminal import stdout

    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    build("reference", this_target(), OUT)
    console = stdout()
    pictures = reference_folder().parent / "demo"
    with load(OUT) as session:
        for line in (pictures / "questions.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answer = "".join(
                s.text for s in session.generate(row["question"], pictures / row["image"])
            )
            console.print(f"{row['image']}: {row['question']} [bold]{answer.strip()}[/]")
    console.print(f"Took {time.monotonic() - started:.0f} s. Open {OUT / 'report.html'}")
    return 0


def _main() -> int:
    from mllm_export.errors import MllmExportError
    from mllm_export.terminal import print_error

    try:
        return main()
    except MllmExportError as failure:
        print_error(str(failure))
        return failure.exit_code


if __name__ == "__main__":
    sys.exit(_main())
