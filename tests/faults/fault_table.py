"""Plant faults and print the table: python tests/faults/fault_table.py --help."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "device_tests"))
sys.path.insert(0, str(Path(__file__).parent))

from planting import FAULTS, MODELS, Benches, Found, markdown, plant


def main() -> int:
    """Exit code 1 when fewer were caught or named than must be."""
    parser = argparse.ArgumentParser(description="Plant faults, one at a time; print a table.")
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all")
    parser.add_argument("--stage", help="only faults of this stage")
    parser.add_argument("--name", help="only faults whose name holds this")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    results: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        benches = Benches(Path(folder))
        for model in asked.model or MODELS:
            for fault in FAULTS:
                wanted = (asked.name or "") in fault.name and asked.stage in {None, fault.stage}
                if wanted and model in fault.models:
                    start = time.perf_counter()
                    one = plant(fault, model, benches)
                    results.append(one)
                    spent = time.perf_counter() - start
                    sys.stderr.write(
                        f"{spent:5.1f} s  {model}, {fault.name}: {one.rung or 'NOT CAUGHT'}"
                        f"{'' if one.named else '  MISNAMED'}  {one.reason[:150]}\n"
                    )
    sys.stdout.write(markdown(results))
    caught = sum(one.caught for one in results) / len(results)
    named = sum(one.named for one in results) / len(results)
    return 0 if caught >= 0.95 and named >= 0.85 else 1


if __name__ == "__main__":
    raise SystemExit(main())
