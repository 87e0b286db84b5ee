"""Plain data as records without pydantic, where every value already has its field's type.

A phone or a board starts with it for every question: pydantic takes 20 ms to import and 55 to
learn what a manifest is (one core of an EPYC 9004), which this reads in 5. What is not exactly
right is left to pydantic, which converts it or says what is wrong.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

Reader = Callable[[Any], Any]


class NotExactError(Exception):
    """The data, or the type, is none that is read here."""


def exact(kind: type[T], data: object) -> T:
    """Raises: NotExactError for what pydantic has to look at; what a record's own check raises."""
    wanted: Any = kind  # mypy does not know that types can be hashed
    try:
        return cast(T, _reader(wanted)(data))
    # A record's own check: pydantic tells it with the key.
    except (ValueError, AssertionError, OverflowError) as failure:
        raise NotExactError from failure


@cache
def _reader(kind: Any) -> Reader:
    if kind is str:
        return _text
    if kind in (int, bool):
        return _of_type(kind)
    if kind is float:
        return _number
    if kind is type(None):
        return _one_of((None,))
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _one_of(inner)
    if origin is tuple:
        return _tuple(inner)
    if origin in (Union, types.UnionType) and len(inner) == 2 and inner[1] is type(None):
        return _optional(_reader(inner[0]))
    if is_dataclass(kind):
        return _record(kind)
    raise NotExactError


def _of_type(kind: type[Any]) -> Reader:
    def read(data: object) -> object:
        if type(data) is not kind:
            raise NotExactError
        return data

    return read


def _text(data: object) -> str:
    if type(data) is not str:
        raise NotExactError
    data.encode()  # half of a surrogate pair is no text
    return data


def _number(data: object) -> float:
    if type(data) not in (float, int):
        raise NotExactError
    return float(cast(float, data))


def _one_of(values: tuple[object, ...]) -> Reader:
    known = {(type(value), value) for value in values}

    def read(data: object) -> object:
        if type(data) not in (str, int, bool, type(None)) or (type(data), data) not in known:
            raise NotExactError
        return data

    return read


def _tuple(inner: tuple[Any, ...]) -> Reader:
    if len(inner) == 2 and inner[1] is ...:
        one = _reader(inner[0])
        return lambda data: tuple(map(one, _list(data)))
    several = [_reader(kind) for kind in inner]

    def read(data: object) -> tuple[Any, ...]:
        if len(_list(data)) != len(several):
            raise NotExactError
        return tuple(one(value) for one, value in zip(several, _list(data), strict=True))

    return read


def _list(data: object) -> list[Any]:
    if type(data) is not list:
        raise NotExactError
    return data


def _optional(inner: Reader) -> Reader:
    return lambda data: None if data is None else inner(data)


def _record(kind: Any) -> Reader:
    def read(data: object) -> object:
        readers, needed = _parts(kind)
        if type(data) is not dict or not needed <= data.keys() <= readers.keys():
            raise NotExactError
        return kind(**{name: readers[name](value) for name, value in data.items()})

    return read


@cache
def _parts(kind: type[Any]) -> tuple[dict[str, Reader], set[str]]:
    """How each field is read, and which must be there. Asked late: a record may hold its like."""
    hints, found = get_type_hints(kind), fields(kind)
    given = [one for one in found if one.default is MISSING and one.default_factory is MISSING]
    return {one.name: _reader(hints[one.name]) for one in found}, {one.name for one in given}
