"""Keys of config.json are typed at the edge, and a wrong one is named."""

import pytest

from mllm_export.config import Config
from mllm_export.errors import CheckpointError

CONFIG = Config(
    {"width": 4, "eps": 1e-5, "name": "x", "tied": True, "nothing": None, "inner": {"a": 1}},
    "config.json",
)


def test_values_come_back_with_their_types() -> None:
    assert CONFIG.integer("width") == 4
    assert CONFIG.number("eps") == 1e-5
    assert CONFIG.number("width") == 4.0
    assert CONFIG.text("name") == "x"
    assert CONFIG.flag("tied") is True
    assert CONFIG.section("inner").integer("a") == 1


def test_null_counts_as_absent() -> None:
    assert "nothing" not in CONFIG
    assert CONFIG.integer("nothing", 7) == 7


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda: CONFIG.integer("absent"), "absent"),
        (lambda: CONFIG.integer("nothing"), "nothing"),
        (lambda: CONFIG.integer("name"), "name"),
        (lambda: CONFIG.integer("tied"), "tied"),
        (lambda: CONFIG.flag("width"), "width"),
        (lambda: CONFIG.text("eps"), "eps"),
        (lambda: CONFIG.section("name"), "name"),
        (lambda: Config({"n": 0}, "config.json").positive("n"), "n"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(call: object, key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json.*'{key}'"):
        call()  # type: ignore[operator]
