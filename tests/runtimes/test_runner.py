"""What a device is asked, on a tiny bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mllm_export.bundle import describe_file, read_manifest, write_manifest
from mllm_export.errors import BundleError
from mllm_export.records import to_json
from mllm_export.runtimes.job import JOB, VALUES, Forced, Job
from mllm_export.runtimes.runner import run
from mllm_export.spec import IMAGE_ID


def test_golden_values_are_compared_before_they_are_used(bundle_copy: Path, tmp_path: Path) -> None:
    """`load` does not open them."""
    golden = bundle_copy / "golden" / "values.npz"
    golden.parent.mkdir()
    rows = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    np.savez(golden, **{"embeds-0": rows})
    manifest = read_manifest(bundle_copy)
    file = describe_file(bundle_copy, "golden/values.npz", "golden")
    write_manifest(bundle_copy, replace(manifest, files=(*manifest.files, file)))
    forced = Forced(sample=0, ids=(1, IMAGE_ID, 5), rows=1)
    (tmp_path / JOB).write_text(to_json(Job(threads=1, forced=(forced,))), encoding="utf-8")
    run(bundle_copy, tmp_path, tmp_path / "out")
    with np.load(tmp_path / "out" / VALUES) as values:
        assert values["logits-0"].shape == (1, 800)
    data = bytearray(golden.read_bytes())
    data[len(data) // 2] ^= 1
    golden.write_bytes(data)
    with pytest.raises(BundleError, match=r"file 'golden/values\.npz' was changed"):
        run(bundle_copy, tmp_path, tmp_path / "out")
