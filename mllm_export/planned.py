"""What a bundle remembers of its plan: the scheme of every tensor, in few words.

A recipe's name is not enough: it may be a file of the user's, a memory budget's, or one whose
rules the build widened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mllm_export.records import record

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A layer's number: a whole word between dots."""


@record
class PlannedScheme:
    """The tensors of tower and decoder that were planned in one scheme."""

    scheme: str
    tensors: tuple[str, ...]
    """Names as floats are stored; `*` stands for any number where all of them are alike."""


def remember(schemes: Mapping[str, str]) -> tuple[PlannedScheme, ...]:
    """Schemes by tensor in a form whose length does not grow with layers that are alike."""
    found: dict[str, set[str]] = {}
    for name, scheme in schemes.items():
        found.setdefault(_any_number(name), set()).add(scheme)
    words: dict[str, dict[str, None]] = {}
    for name, scheme in schemes.items():
        pattern = _any_number(name)
        word = pattern if len(found[pattern]) == 1 else name
        words.setdefault(scheme, {})[word] = None
    return tuple(PlannedScheme(scheme=one, tensors=tuple(words[one])) for one in words)


def recall(planned: Iterable[PlannedScheme], names: Iterable[str]) -> dict[str, str]:
    """The planned scheme of each of these tensors; one that was not planned is left out."""
    schemes = {word: one.scheme for one in planned for word in one.tensors}
    found = ((name, schemes.get(name) or schemes.get(_any_number(name))) for name in names)
    return {name: scheme for name, scheme in found if scheme is not None}


def _any_number(name: str) -> str:
    return _NUMBER.sub("*", name)
