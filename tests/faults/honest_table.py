"""Build honest twins and check each: python tests/faults/honest_table.py --help."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "device_tests"))
sys.path.insert(0, str(Path(__file__).parent))

from honest import build_and_check, honest_builds

from mllm_export.errors import MllmExportError
from mllm_export.report import Report


def main() -> int:
    """Exit code 1 when any fails."""
    parser = argparse.ArgumentParser(description="Build honest twins; every one must pass.")
    parser.add_argument("--only", default="", help="builds whose line holds this")
    asked = parser.parse_args()
    failed = 0
    sys.stdout.write("| build | verdict | seconds | first failure |\n|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        for one in honest_builds():
            if asked.only in str(one):
                start = time.perf_counter()
                verdict, why = _verdict(one, Path(folder))
                failed += verdict != "passed"
                spent = time.perf_counter() - start
                sys.stdout.write(f"| {one} | {verdict} | {spent:.0f} | {why} |\n")
                sys.stdout.flush()
    return 1 if failed else 0


def _verdict(one: object, folder: Path) -> tuple[str, str]:
    try:
        report: Report = build_and_check(one, folder)  # type: ignore[arg-type]
    except MllmExportError as refusal:
        return "refused", str(refusal)
    first = report.first_failure
    return ("passed", "") if report.passed else ("failed", f"{first.name}: {first.reason}")  # type: ignore[union-attr]


if __name__ == "__main__":
    raise SystemExit(main())
