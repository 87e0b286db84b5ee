"""The original, stopped between its parts and layers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mllm_export.device_tests.reference import Floats, Forced, Reader, Reference
from mllm_export.errors import CheckError

_TOWER, _PROJECTOR = "tower.", "projector."
"""Before the published names of the parts in the exported graph. Source: export/stored.py."""

_NUMBERED = re.compile(r"^(.*\.)?(\d+)\.$")


class Walked:
    """A reference whose modules are watched while it runs; see `references/_watch.py`."""

    def __init__(self, reference: Reference) -> None:
        """Nothing runs before it is asked for."""
        self.reference = reference
        originals = reference.tower_originals()
        self._projector = tuple(
            one.source for name, one in originals.items() if name.startswith(_PROJECTOR)
        )
        self._tower = tuple(
            name.removeprefix(_TOWER) for name in originals if name.startswith(_TOWER)
        )

    def embed(self, pixels: Floats) -> Floats:
        """Tiles f32[N, 3, S, S] to embeddings f32[N * T, D]."""
        made = self.reference.embed(pixels)
        return np.ascontiguousarray(made.reshape(-1, made.shape[-1]))

    def features(self, pixels: Floats) -> Floats:
        """What enters the projector. Shapes: f32[N, 3, S, S] -> f32[N, tokens, width].

        Raises: CheckError for a reference that does not show it.
        """
        seen: list[Floats] = []

        def look(prefix: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
            if self._is_projector(prefix):
                seen.append(np.array(args[0].float().numpy(), np.float32))

        self._watched(look, lambda: self.reference.embed(pixels))
        if not seen:
            raise CheckError(
                "the reference does not show what enters its projector: fill the projector's "
                "module through references/_fill.py, under its published prefix"
            )
        return np.concatenate(seen)

    def project(self, features: Floats, pixels: Floats) -> Floats:
        """The original projector on these features; `pixels` only have to be of the same shape.

        Shapes: f32[N, tokens, width] -> f32[N * T, D].
        """
        import torch

        taken = 0

        def replace(prefix: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal taken
            if not self._is_projector(prefix):
                return None
            count = len(args[0])
            part = torch.from_numpy(features[taken : taken + count]).to(args[0].dtype)
            taken += count
            return ((part.reshape(args[0].shape), *args[1:]), kwargs)

        return np.asarray(self._watched(replace, lambda: self.embed(pixels)), np.float32)

    def _is_projector(self, prefix: str) -> bool:
        """The whole projector, not one of the modules in it."""
        return all(source.startswith(prefix) for source in self._projector)

    @cached_property
    def tower_layers(self) -> tuple[str, ...]:
        """Published prefixes of the towers' layers that run, in order, as the graph names them."""
        return _longest_rows({prefix for name in self._tower for prefix in _prefixes(name)})

    def tower_states(self, pixels: Floats) -> dict[str, Floats]:
        """What enters each layer of the tower. Shapes: f32[1, 3, S, S] -> f32[1, tokens, width]."""
        layers = self.tower_layers
        return self._entering(layers, lambda: self.reference.embed(pixels))

    def decoder_layers(self) -> tuple[str, ...]:
        """Published prefixes of the decoder's layers, in order."""
        sources = [one.source for one in self.reference.decoder_originals().values()]
        return _longest_row({prefix for name in sources for prefix in _prefixes(name)})

    def decoder_states(
        self, sequences: Sequence[Forced], weights: Reader | None
    ) -> tuple[dict[str, Floats], list[Floats]]:
        """What enters each layer and what follows the last, f32[positions, D]; and the logits."""
        rows: list[list[Floats]] = []

        def run() -> None:
            rows.append(self.reference.logits(sequences, weights))

        states = self._entering((*self.decoder_layers(), *self._behind_layers), run)
        return states, rows[0]

    @cached_property
    def _behind_layers(self) -> tuple[str, ...]:
        """Published prefix of the norm before the head."""
        originals = self.reference.decoder_originals()
        found = originals.get("output_norm.weight")
        return (found.source.removesuffix("weight"),) if found else ()

    def _entering(self, layers: Sequence[str], run: Callable[[], object]) -> dict[str, Floats]:
        seen: dict[str, list[Floats]] = defaultdict(list)

        def look(prefix: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
            if prefix in layers:
                values = args[0].float().numpy()
                seen[prefix].append(np.array(values, np.float32).reshape(-1, values.shape[-1]))

        self._watched(look, run)
        return {prefix: np.concatenate(seen[prefix]) for prefix in layers if prefix in seen}

    @staticmethod
    def _watched(watcher: Callable[..., Any], run: Callable[[], Any]) -> Any:
        from mllm_export.device_tests.references._watch import watching

        with watching(watcher):
            return run()


def makers(order: Sequence[str]) -> dict[str, str]:
    """What made the state that enters each: the layer before it, or what stands before the first.

    Of several encoders each has its own beginning, and all of them make what is joined.
    """
    rows = [found[1] or "" for one in order if (found := _NUMBERED.match(one))]
    several = len(set(rows)) > 1
    made: dict[str, str] = {}
    before, row = "", ""
    for one in order:
        found = _NUMBERED.match(one)
        if found and (not made or (found[1] or "") != row):
            row = found[1] or ""
            made[one] = f"{row.partition('.')[0]}.embeddings" if several else "embeddings"
        else:
            made[one] = "fusion" if several and not found else before or "embeddings"
        before = one.rstrip(".")
    return made


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: at + 1]) + "." for at, part in enumerate(parts) if part.isdigit()]


def _longest_row(prefixes: set[str]) -> tuple[str, ...]:
    """Of the numbered rows of modules the one with most members, in the order of its numbers."""
    longest = max(_rows(prefixes).values(), key=len, default=[])
    return tuple(prefix for _, prefix in sorted(longest))


def _longest_rows(prefixes: set[str]) -> tuple[str, ...]:
    """The longest row, and those that are called like it but for an encoder's name in front."""
    rows = _rows(prefixes)
    longest = max(rows, key=lambda one: len(rows[one]), default="")
    _, _, inside = longest.partition(".")
    alike = [one for one in rows if one == longest or (inside and one.partition(".")[2] == inside)]
    return tuple(prefix for one in sorted(alike) for _, prefix in sorted(rows[one]))


def _rows(prefixes: set[str]) -> dict[str, list[tuple[int, str]]]:
    rows: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for prefix in prefixes:
        found = _NUMBERED.match(prefix)
        if found:
            rows[found[1] or ""].append((int(found[2]), prefix))
    return rows
