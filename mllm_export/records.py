"""Frozen data that goes to JSON and back without loss."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import dataclass_transform

from mllm_export.plain import NotExactError, exact

if TYPE_CHECKING:
    from pathlib import Path

    from mllm_export.errors import MllmExportError

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass with slots that refuses unknown keys when read."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]  # read by pydantic
    return dataclass(frozen=True, slots=True, kw_only=True)(cls)


def as_plain(value: object) -> Any:
    """A record as the dicts, lists and scalars that JSON knows."""
    from pydantic import TypeAdapter

    return TypeAdapter(type(value)).dump_python(value, mode="json")


def to_json(value: object) -> str:
    """A record as indented JSON with a final newline; the same value gives the same bytes."""
    return json.dumps(as_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_plain(cls: type[T], data: object, where: str, error: type[MllmExportError]) -> T:
    """Read a record from plain data.

    Raises: `error`, naming `where`, the first key that is wrong, and why.
    """
    with suppress(NotExactError):
        return exact(cls, data)
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as failure:
        raise error(f"{where}: {_first_problem(failure.errors())}") from failure


def from_json(
    cls: type[T], text: str | bytes, where: Path | str, error: type[MllmExportError]
) -> T:
    """Read a record from JSON text; see `from_plain`."""
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as failure:
        raise error(f"{where}: not valid JSON ({failure})") from failure
    return from_plain(cls, data, str(where), error)


def _first_problem(problems: list[Any]) -> str:
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"]) or "(top level)"
    return f"key '{key}': {first['msg']}"
