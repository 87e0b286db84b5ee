"""Build honest twins and check each: python tests/faults/honest_table.py --help."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "device_tests"))
sys.path.insert(0, str(Path(__file__).parent))

from honest import TRAINED, Honest, build_and_check, honest_builds, nearest

from mllm_export.errors import MllmExportError


def main() -> int:
    """Exit code 1 when any fails."""
    parser = argparse.ArgumentParser(description="Build honest twins; every one must pass.")
    parser.add_argument("--only", default="", help="builds whose line holds this")
    asked = parser.parse_args()
    failed = 0
    sys.stdout.write(
        "| build | verdict | CPU seconds | first failure, or the least room left |\n"
        "|---|---|---|---|\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        for one in (*honest_builds(), *TRAINED):
            if asked.only in str(one):
                start = time.process_time()
                verdict, why = _verdict(one, Path(folder))
                failed += verdict != "passed"
                spent = time.process_time() - start
                sys.stdout.write(f"| {one} | {verdict} | {spent:.0f} | {why} |\n")
                sys.stdout.flush()
    return 1 if failed else 0


def _verdict(one: Honest, folder: Path) -> tuple[str, str]:
    try:
        report = build_and_check(one, folder)
    except MllmExportError as refusal:
        return "refused", str(refusal)
    first = report.first_failure
    if first is not None:
        return "failed", f"{first.name}: {first.reason}"
    name, used = nearest(report)
    return "passed", f"{name}, at {100 * used:.0f} % of its limit"


if __name__ == "__main__":
    raise SystemExit(main())
