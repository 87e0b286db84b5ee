"""A checkpoint's config.json, read once and typed at the edge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from mllm_export.errors import CheckpointError

T = TypeVar("T")


class _Required:
    """Marks a key that has no default."""


REQUIRED: Final = _Required()


class Config:
    """Typed look-ups in one JSON object; unknown keys are ignored, wrong ones are errors."""

    def __init__(self, data: Mapping[str, object], file: str) -> None:
        """`file` is the name that errors show."""
        self._data = data
        self.file = file

    def __contains__(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self._data.get(key) is not None

    def integer(self, key: str, default: int | _Required = REQUIRED) -> int:
        """A whole number."""
        return self._get(key, (int,), "a whole number", default)

    def positive(self, key: str, default: int | _Required = REQUIRED) -> int:
        """A whole number of at least 1: every size of a model is one."""
        value = self.integer(key, default)
        if value < 1:
            raise self._wrong(key, value, "at least 1")
        return value

    def number(self, key: str, default: float | _Required = REQUIRED) -> float:
        """A number."""
        return float(self._get(key, (int, float), "a number", default))

    def text(self, key: str, default: str | _Required = REQUIRED) -> str:
        """A string."""
        return self._get(key, (str,), "text", default)

    def flag(self, key: str, default: bool | _Required = REQUIRED) -> bool:
        """True or false."""
        return self._get(key, (bool,), "true or false", default)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers."""
        return tuple(float(value) for value in self._get(key, (list,), "a list", REQUIRED))

    def items(self, key: str) -> tuple[object, ...]:
        """A list of anything."""
        return tuple(self._get(key, (list,), "a list", REQUIRED))

    def plain(self) -> Mapping[str, object]:
        """The object itself, for one whose keys are data."""
        return self._data

    def section(self, key: str) -> Config:
        """A nested object."""
        return Config(self._get(key, (dict,), "an object", REQUIRED), f"{self.file}: {key}")

    def _get(self, key: str, kinds: tuple[type[T], ...], needed: str, default: T | _Required) -> T:
        value = self._data.get(key)
        if value is None:
            if isinstance(default, _Required):
                raise CheckpointError(
                    f"{self.file}: key '{key}' is missing; it must be in the published config"
                )
            return default
        # To Python, true and false are whole numbers too.
        is_flag_for_number = isinstance(value, bool) and bool not in kinds
        if is_flag_for_number or not isinstance(value, kinds):
            raise self._wrong(key, value, needed)
        return value

    def _wrong(self, key: str, value: object, needed: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: key '{key}' is {value!r}, needed: {needed}")


def read_json_object(path: Path) -> dict[str, object]:
    """A JSON file that holds one object.

    Raises: CheckpointError when the file is missing, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; the folder must be a checkpoint as its authors published it"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as failure:
        raise CheckpointError(f"{path}: not valid JSON ({failure})") from failure
    except OSError as failure:
        raise CheckpointError(f"{path}: cannot be read ({failure.strerror})") from failure
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, needed: a JSON object")
    return data
