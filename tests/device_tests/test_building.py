"""The benchmark of building: both sides are given the same model."""

import json
from pathlib import Path

import pytest

from mllm_export.device_tests.benchmarks.building import compare
from mllm_export.export.family import FAMILIES
from mllm_export.export.random_checkpoint import write_random_checkpoint

CONVERTER = """
import json, sys
from pathlib import Path

folder, out = Path(sys.argv[1]), Path(sys.argv[sys.argv.index("--outfile") + 1])
out.write_bytes(b"")
kind = json.loads((folder / "config.json").read_text())["architectures"]
with Path(__file__).with_name("given.jsonl").open("a") as given:
    print(json.dumps(kind), file=given)
"""


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    """Stands in for upstream's program: notes which model it was given."""
    file = tmp_path / "converter" / "convert.py"
    file.parent.mkdir()
    file.write_text(CONVERTER, encoding="utf-8")
    return file


def test_a_second_checkpoint_in_the_same_folder_is_converted_itself(
    tmp_path: Path, converter: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    for family in ("mobilevlm", "llava_phi"):
        checkpoint = write_random_checkpoint(
            tmp_path / "of" / family / family, FAMILIES[family].tiny()
        )
        out = tmp_path / f"{family}.md"
        compare(checkpoint, converter, work, out, ["f16"], repeats=1)
        assert f"{family}, " in capfd.readouterr().out
    given = converter.with_name("given.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in given] == [["LlamaForCausalLM"], ["PhiForCausalLM"]]
    assert not list(work.iterdir()), "the copies are gone"
