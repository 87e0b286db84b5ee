"""Sequences that share their beginning, packed into one row so that it is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from mllm_export.device_tests.reference import Floats, Forced
from mllm_export.errors import CheckError
from mllm_export.spec import IMAGE_ID

MAX_ROW = 1024
"""Positions after which a row is closed; the cost of attention grows with the square."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """Ids, and an array of embeddings for each IMAGE_ID among them."""

    ids: tuple[int, ...]
    images: tuple[Floats, ...]

    @property
    def length(self) -> int:
        """Positions once each image stands in its place."""
        return len(self.ids) - len(self.images) + sum(len(image) for image in self.images)

    def split(self, at: int) -> tuple[Piece, Piece]:
        """The first `at` ids, and the rest."""
        before = self.ids[:at].count(IMAGE_ID)
        return (
            Piece(ids=self.ids[:at], images=self.images[:before]),
            Piece(ids=self.ids[at:], images=self.images[before:]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Suffix:
    """What is left of one sequence after the shared prefix."""

    index: int
    """Place of the sequence among those asked for."""
    piece: Piece
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One prefix and the suffixes that follow it, each blind to the others."""

    prefix: Piece
    suffixes: tuple[Suffix, ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All that stands in the row, in order."""
        return (self.prefix, *(suffix.piece for suffix in self.suffixes))

    def layout(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Positions i64[T], and who sees whom bool[T, T]."""
        shared, *lengths = (piece.length for piece in self.pieces)
        total = shared + sum(lengths)
        positions = np.arange(total)
        sees = np.tril(np.ones((total, total), np.bool_))
        start = shared
        for length in lengths:
            positions[start : start + length] = np.arange(shared, shared + length)
            sees[start : start + length, shared:start] = False
            start += length
        return positions, sees

    def shares(self, image_share: float) -> npt.NDArray[np.float32]:
        """How much each position counts: 1 for a token, `image_share` for one of an image.

        Shapes: f32[T].
        """
        found: list[float] = []
        for piece in self.pieces:
            images = iter(piece.images)
            for one in piece.ids:
                found += [image_share] * len(next(images)) if one == IMAGE_ID else [1.0]
        return np.array(found, np.float32)

    def wanted(self) -> Iterator[tuple[int, slice]]:
        """For each sequence, the positions of the row that it asks for."""
        end = self.prefix.length
        for suffix in self.suffixes:
            end += suffix.piece.length
            yield suffix.index, slice(end - suffix.rows, end)


def pack(sequences: Sequence[Forced]) -> list[Row]:
    """Rows that hold every sequence once; those of the same images share a row.

    Raises: CheckError when a sequence names another number of images than it holds.
    """
    for sequence in sequences:
        if sequence.ids.count(IMAGE_ID) != len(sequence.images):
            raise CheckError(
                f"{sequence.ids.count(IMAGE_ID)} images in the ids, {len(sequence.images)} given"
            )

    # By first appearance: sorted by address, rows would be summed in another order by each process.
    places: dict[int, int] = {}
    for sequence in sequences:
        for image in sequence.images:
            places.setdefault(id(image), len(places))

    def key(at: int) -> tuple[int, ...]:
        return tuple(places[id(image)] for image in sequences[at].images)

    order = sorted(range(len(sequences)), key=key)
    return [row for _, group in groupby(order, key=key) for row in _rows(sequences, list(group))]


def _rows(sequences: Sequence[Forced], members: list[int]) -> Iterator[Row]:
    shared = _shared([sequences[at] for at in members])
    suffixes: list[Suffix] = []
    prefix, length = Piece(ids=(), images=()), 0
    for at in members:
        one = sequences[at]
        prefix, rest = Piece(ids=one.ids, images=one.images).split(shared)
        if suffixes and length + rest.length > MAX_ROW:
            yield Row(prefix=prefix, suffixes=tuple(suffixes))
            suffixes, length = [], 0
        length = (length or prefix.length) + rest.length
        suffixes.append(Suffix(index=at, piece=rest, rows=one.rows))
    yield Row(prefix=prefix, suffixes=tuple(suffixes))


def _shared(members: list[Forced]) -> int:
    """Ids at the beginning that all have, short of the rows that any of them asks for."""
    first = members[0].ids
    limit = min(len(one.ids) - one.rows for one in members)
    shared = 0
    while shared < limit and all(one.ids[shared] == first[shared] for one in members):
        shared += 1
    return shared
