"""The first twin's writer: it still writes the files that ship."""

import shutil
from pathlib import Path

import pytest
import torch

import mllm_export.export.reference as reference
from mllm_export.export.reference.twin import TWINS, twin_of

SHIPPED = Path(reference.__file__).parent / "data" / "checkpoint"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written")
    twin = TWINS["mobilevlm"]
    twin.write(twin.read_parts(SHIPPED), twin.read_spec(SHIPPED), out)
    return out / "checkpoint"


def test_the_shipped_checkpoint_is_this_twins() -> None:
    assert twin_of(SHIPPED) is TWINS["mobilevlm"]


@pytest.mark.parametrize("at", ["checkpoint", "clip-vit-tiny-patch14-336"])
def test_writing_the_shipped_tensors_gives_the_shipped_files(written: Path, at: str) -> None:
    new, old = written.parent / at, SHIPPED.parent / at
    assert {path.name for path in new.iterdir()} == {path.name for path in old.iterdir()}
    for path in old.iterdir():
        if path.suffix != ".bin":
            assert (new / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_pickle_holds_the_same_tensors(written: Path) -> None:
    states = [
        torch.load(folder / "pytorch_model.bin", weights_only=True) for folder in (written, SHIPPED)
    ]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_another_models_config_is_no_twins(tmp_path: Path) -> None:
    from mllm_export.errors import UnsupportedModelError

    shutil.copy(SHIPPED / "config.json", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"mobilevlm"', '"bunny"'))
    with pytest.raises(UnsupportedModelError, match=r"'bunny' is no trained twin's \(known: llava"):
        twin_of(tmp_path)
