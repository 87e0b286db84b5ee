"""Records read without pydantic are those that pydantic reads; all else is left to it."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mllm_export.errors import BundleError, SpecError
from mllm_export.plain import NotExactError, exact
from mllm_export.records import from_plain, record


@record
class Inner:
    """Refuses what is not in order."""

    low: int
    high: int | None = None

    def __post_init__(self) -> None:
        """As the spec's records do, or with an error that pydantic tells."""
        if self.low > 10**6:
            raise SpecError("too large")
        if self.low < 0:
            raise ValueError("negative")


@record
class Whole:
    """Every kind of field there is in a manifest."""

    schema: Literal[1, 2] = 1
    role: Literal["tower", "decoder"]
    name: str
    ratio: float
    ready: bool
    size: tuple[int, int, int]
    pairs: tuple[tuple[str, str], ...] = ()
    inner: tuple[Inner, ...] = ()
    best: Inner | None
    like: Whole | None = None


DATA: dict[str, Any] = {
    "role": "tower",
    "name": "größe",
    "ratio": 2,
    "ready": True,
    "size": [1, 2, 3],
    "pairs": [["a", "b"]],
    "inner": [{"low": 1}, {"low": 2, "high": None}],
    "best": {"low": 0, "high": 4},
    "like": {"role": "decoder", "name": "", "ratio": 0.5, "ready": False, "size": [0, 0, 0]}
    | {"best": None},
}

PYDANTIC = TypeAdapter(Whole)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.just(10**400)
    | st.just(10**7)
    | st.floats()
    | st.sampled_from(["tower", "1", "true", "2.5", "", "\ud800"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["low", "high", "more"]), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in the data, from the top down."""
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [path, *(place for key in keys for place in places(data[key], (*path, key)))]


def changed(path: tuple[Any, ...], how: str, value: Any) -> Any:
    """The data with another value there, without it, or with one more."""
    data = copy.deepcopy(DATA)
    if not path:
        return value
    inside = data
    for key in path[:-1]:
        inside = inside[key]
    if how == "drop":
        del inside[path[-1]]
    elif how == "add" and isinstance(inside, dict):
        inside["surprise"] = value
    else:
        inside[path[-1]] = value
    return data


def outcome(read: Any, data: Any) -> str:
    try:
        return repr(read(data))
    except SpecError as failure:
        return f"its own check: {failure}"
    except (ValidationError, BundleError):
        return "refused"


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(places(DATA)), st.sampled_from(["set", "drop", "add"]), VALUES)
def test_what_is_read_is_what_pydantic_reads(path: Any, how: str, value: Any) -> None:
    data = changed(path, how, value)
    wanted = outcome(PYDANTIC.validate_python, data)
    assert outcome(lambda it: from_plain(Whole, it, "here", BundleError), data) == wanted
    with suppress(NotExactError):
        assert outcome(lambda it: exact(Whole, it), data) == wanted


def test_what_is_exactly_right_is_read_without_pydantic() -> None:
    found = exact(Whole, json.loads(json.dumps(DATA)))
    assert found == PYDANTIC.validate_python(DATA)
    assert found.inner == (Inner(low=1), Inner(low=2))
    assert found.like is not None
    assert found.like.role == "decoder"


@pytest.mark.parametrize(
    ("field", "value"),
    [("ready", 1), ("schema", True), ("schema", 1.0), ("name", b"x"), ("size", (1, 2, 3))],
)
def test_what_would_have_to_be_converted_is_left_to_pydantic(field: str, value: object) -> None:
    with pytest.raises(NotExactError):
        exact(Whole, DATA | {field: value})
