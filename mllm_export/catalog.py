"""A catalog is a folder: the file name is the key, the module defines one constant."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from functools import cached_property
from importlib.resources import files
from typing import Generic, TypeVar, cast

from mllm_export.errors import MllmExportError, UnsupportedModelError

T = TypeVar("T")


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The sentence for a name that is not in a list, with the nearest ones that are."""
    near = get_close_matches(name, known, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"unknown {kind} '{name}'{hint} (known: {', '.join(known)})"


class Catalog(Generic[T]):
    """Modules of one package by file name; a module is imported when it is asked for.

    Names that begin with an underscore are not entries.
    """

    def __init__(
        self,
        package: str,
        constant: str,
        kind: str,
        error: type[MllmExportError] = UnsupportedModelError,
    ) -> None:
        """`constant` is the name every module of `package` defines; `kind` is for messages."""
        self.package = package
        self.constant = constant
        self.kind = kind
        self.error = error

    @cached_property
    def _names(self) -> list[str]:
        found = (entry.name for entry in files(self.package).iterdir())
        return sorted(n[:-3] for n in found if n.endswith(".py") and not n.startswith("_"))

    def names(self) -> list[str]:
        """The keys, sorted; reads the folder and imports nothing."""
        return list(self._names)

    def __getitem__(self, name: str) -> T:
        """Import the entry's module and return its constant.

        Raises: the catalog's error, with near names, when there is no such file.
        """
        if name not in self._names:
            raise self.error(unknown(self.kind, name, self._names))
        module = importlib.import_module(f"{self.package}.{name}")
        return cast(T, getattr(module, self.constant))
