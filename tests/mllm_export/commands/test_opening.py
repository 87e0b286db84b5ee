"""What --vision-tower says, given once or several times."""

from pathlib import Path

import pytest

from mllm_export.checkpoint import INSIDE, Asked
from mllm_export.commands.opening import asked_towers
from mllm_export.errors import CheckpointError


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ((), None),
        (("inside",), INSIDE),
        (("some/dir",), Path("some/dir")),
        (("./a=b",), Path("./a=b")),
        (("dino=a", "siglip=b=c"), (("dino", Path("a")), ("siglip", Path("b=c")))),
    ],
)
def test_a_folder_or_names_with_folders(given: tuple[str, ...], asked: Asked) -> None:
    assert asked_towers(given) == asked


@pytest.mark.parametrize("given", [("a", "b"), ("dino=a", "b"), ("dino=a", "dino=b")])
def test_what_cannot_be_meant_is_told(given: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match="give one DIR, or NAME=DIR once for each name"):
        asked_towers(given)
