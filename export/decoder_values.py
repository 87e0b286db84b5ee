"""Where the values of a GGUF file come from: the checkpoint, or a method's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mllm_export.errors import CalibrationError
from mllm_export.export.decoder_plan import FLOATS, StoredTensor
from mllm_export.export.parts import Array, Reader, as_float32
from mllm_export.quantize.ggml import Floats, Packed
from mllm_export.quantize.grid import Grid
from mllm_export.quantize.inputs import Inputs, ObservedLayer
from mllm_export.quantize.layout import LAYOUTS, Layout
from mllm_export.quantize.method import Fold, Layer, Method, Storage

COLUMNS, ROWS = ".columns", ".rows"
"""Stand behind a stored tensor's name for what multiplied its columns and divided its rows."""

Folds = Callable[[int | None], tuple[Fold, ...]]
"""Layer's number, or None for what stands behind the layers, to what may be folded there."""


class Values(Protocol):
    """What the writer of a GGUF file asks of each tensor."""

    def read(self, name: str) -> Array:
        """Values of a published tensor."""

    def importance(self, stored: StoredTensor) -> Floats | None:
        """What an error in each column costs, f32[cols]; None: all the same."""

    def packed(self, stored: StoredTensor) -> Packed | None:
        """The tensor's rows as the layout stores them, where codes were chosen already."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlainValues:
    """The checkpoint's own values, with an importance matrix or without."""

    reader: Reader
    matrix: Mapping[str, Floats] = field(default_factory=dict)
    """By GGUF name."""

    def read(self, name: str) -> Array:
        """Values of a published tensor."""
        return self.reader(name)

    def importance(self, stored: StoredTensor) -> Floats | None:
        """The matrix's entry. An embedding's rows are looked up: no input has its columns."""
        return self.matrix.get(stored.tensor.name)

    def packed(self, stored: StoredTensor) -> Packed | None:
        """Nothing is chosen beforehand."""
        del stored
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayoutStorage:
    """A layout as a method sees it."""

    layout: Layout
    weighted: bool
    """Whether the layout's own search knows what columns cost."""

    def round(self, rows: Floats, importance: Floats | None) -> Floats:
        """What is read back of stored rows."""
        costs = importance if self.weighted else None
        return self.layout.unpack(self.layout.pack(rows, costs))

    def fit(self, rows: Floats, importance: Floats | None) -> Grid | None:
        """Scales and steps."""
        return self.layout.fit(rows, importance if self.weighted else None)


class ChosenValues:
    """Values that methods choose, a layer at a time while calibration runs through the model.

    Holds one layer; tensors must be asked for in the file's order.
    """

    def __init__(
        self,
        tensors: Sequence[StoredTensor],
        read: Reader,
        methods: Sequence[Method],
        observed: Iterator[ObservedLayer] | None,
        folds: Folds,
        weighted: bool = True,
    ) -> None:
        """`observed` gives the layers in order and the head last; None: no calibration."""
        self._read = read
        self._methods = methods
        self._observed = observed
        self._folds = folds
        self._weighted = weighted
        self._groups = _groups(tensors)
        self._at = -1
        self._layer: Layer | None = None
        self.folded: dict[str, Floats] = {}
        """Scales per channel that methods moved: see `decoder_calibrated`."""

    def read(self, name: str) -> Array:
        """Chosen values of a published tensor."""
        return self._layer_of(name).weights[name]

    def importance(self, stored: StoredTensor) -> Floats | None:
        """Of the chosen values' inputs; what a tensor is made of reads the same inputs."""
        if not self._weighted or not stored.tensor.sources:
            return None
        name = stored.tensor.sources[0]
        return self._layer_of(name).importance(name)

    def packed(self, stored: StoredTensor) -> Packed | None:
        """Rows whose codes a method chose, in the stored order."""
        parts = [self._layer_of(name).fitted.get(name) for name in stored.tensor.sources]
        found = [part for part in parts if part is not None]
        if not found or len(found) < len(parts):
            return None
        layout = LAYOUTS[stored.scheme]
        rows: Packed = stored.tensor.transform([layout.store(f.grid, f.codes) for f in found])
        return rows

    def _layer_of(self, name: str) -> Layer:
        while self._layer is None or name not in self._layer.weights:
            self._at += 1
            if self._at >= len(self._groups):
                raise CalibrationError(f"'{name}' was asked for after its layer was let go")
            self._layer = self._choose(self._groups[self._at])
        return self._layer

    def _choose(self, group: _Group) -> Layer:
        weights = {
            name: as_float32(self._read(name))
            for one in group.tensors
            for name in one.tensor.sources
        }
        storage: dict[str, Storage] = {
            name: LayoutStorage(layout=LAYOUTS[scheme], weighted=self._weighted)
            for name, scheme in _schemes(group.tensors).items()
            if scheme not in FLOATS
        }
        observed = self._next_observed(group)
        inputs: Mapping[str, Inputs] = observed.inputs if observed else {}
        layer = Layer(
            weights=weights,
            inputs=inputs,
            storage=storage,
            folds=() if group.is_before else self._folds(group.layer),
        )
        for method in self._methods:
            layer = method.choose(layer)
        self.folded.update(_folded(layer, group.tensors))
        if observed is not None and layer.weights is not weights:
            observed.replace(_as_stored(layer))
        return layer

    def _next_observed(self, group: _Group) -> ObservedLayer | None:
        if self._observed is None or group.is_before:
            return None
        return next(self._observed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    layer: int | None
    is_before: bool
    tensors: tuple[StoredTensor, ...]


def _groups(tensors: Sequence[StoredTensor]) -> list[_Group]:
    """What stands before the layers, each layer, and what stands behind them."""
    found: dict[int | str, list[StoredTensor]] = {"before": []}
    for one in tensors:
        parts = one.tensor.name.split(".")
        key: int | str = int(parts[1]) if parts[0] == "blk" else "after"
        if parts[0] == "token_embd" or (len(found) == 1 and key == "after"):
            key = "before"
        found.setdefault(key, []).append(one)
    return [
        _Group(
            layer=key if isinstance(key, int) else None,
            is_before=key == "before",
            tensors=tuple(members),
        )
        for key, members in found.items()
    ]


def _schemes(tensors: Sequence[StoredTensor]) -> dict[str, str]:
    """The layout of each published weight; those that several layouts share are left out.

    A packed query, key and value can be cut into tensors of unlike layouts: no one grid is
    theirs.
    """
    found: dict[str, set[str]] = {}
    for one in tensors:
        for name in one.tensor.sources:
            found.setdefault(name, set()).add(one.scheme)
    return {name: next(iter(schemes)) for name, schemes in found.items() if len(schemes) == 1}


def _folded(layer: Layer, tensors: Sequence[StoredTensor]) -> dict[str, Floats]:
    """What multiplied the columns and divided the rows of each stored tensor."""
    columns: dict[str, Floats] = {}
    for fold in layer.folds:
        scales = [layer.scales[name] for name in fold.out_of if name in layer.scales]
        columns.update(dict.fromkeys(fold.into, scales[0]) if scales else {})
    found: dict[str, Floats] = {}
    for one in tensors:
        names = one.tensor.sources
        if names and names[0] in columns:
            found[one.tensor.name + COLUMNS] = columns[names[0]]
        if names and names[0] in layer.scales:
            rows = one.tensor.transform([layer.scales[name] for name in names])
            found[one.tensor.name + ROWS] = np.asarray(rows, np.float32)
    return found


def _as_stored(layer: Layer) -> dict[str, Floats]:
    """What the layers behind will see of this one."""
    return {
        name: values
        if name in layer.fitted or name not in layer.storage
        else layer.storage[name].round(values, layer.importance(name))
        for name, values in layer.weights.items()
    }
