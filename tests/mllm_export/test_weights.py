"""Every tensor of a checkpoint is taken or dropped by name."""

import pytest

from mllm_export.errors import CheckpointError
from mllm_export.weights import Drop, Take, WeightMap

MAP = WeightMap(
    takes=(
        Take(part="decoder", parameter="norm.weight", source="model.norm.weight", shape=(4,)),
        Take(part="tower", parameter="fc.weight", source="tower:fc.weight", shape=(2, 4)),
    ),
    drops=(Drop(pattern="*.inv_freq", why="recomputed"),),
)
WHOLE = {"model.norm.weight": (4,), "tower:fc.weight": (2, 4), "layers.0.inv_freq": (8,)}


def test_a_covered_checkpoint_gives_what_was_dropped_and_why() -> None:
    dropped = MAP.resolve(WHOLE)
    assert [(d.source, d.why) for d in dropped] == [("layers.0.inv_freq", "recomputed")]
    assert MAP.part("tower") == {"fc.weight": "tower:fc.weight"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model.norm.weight": None}, "model.norm.weight"),
        ({"tower:fc.weight": (4, 2)}, r"fc\.weight' is \[4, 2\].*needs \[2, 4\]"),
        ({"model.extra": (1,)}, "model.extra"),
    ],
    ids=["missing", "misshapen", "left over"],
)
def test_a_tensor_that_does_not_fit_is_named(
    change: dict[str, tuple[int, ...] | None], named: str
) -> None:
    found = {k: v for k, v in {**WHOLE, **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=named):
        MAP.resolve(found)
