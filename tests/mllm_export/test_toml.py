"""A TOML file of ours that cannot be read is named, and the error says why."""

from pathlib import Path

import pytest

from mllm_export.errors import RecipeError
from mllm_export.toml import read_toml

BROKEN = {
    "a file that is missing": (None, r"one\.toml is missing"),
    "a file that is no TOML": (b"tower = [", r"one\.toml: not valid TOML"),
    "a file in Latin-1": (
        'name = "für"\n'.encode("latin-1"),
        r"one\.toml: not valid TOML \('utf-8' codec can't decode byte 0xfc",
    ),
    "a file in UTF-16": ('name = "x"\n'.encode("utf-16"), r"one\.toml: not valid TOML"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, case: str) -> None:
    data, words = BROKEN[case]
    file = tmp_path / "one.toml"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(RecipeError, match=words):
        read_toml(file, RecipeError)
