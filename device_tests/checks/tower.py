"""Image embeddings of the export's tower and projector against the original's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from mllm_export.device_tests.cases import TowerCase
from mllm_export.device_tests.check import Context
from mllm_export.device_tests.distributions import cosines, relative_error
from mllm_export.device_tests.limit import Kind
from mllm_export.device_tests.probes import FLOAT16_LARGEST, LayerRange, layer_ranges
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.stored import as_published, standing_in
from mllm_export.device_tests.thumbnails import thumbnail
from mllm_export.device_tests.tower_file import TOWER_FILES, TowerSeams
from mllm_export.errors import EngineError, MllmExportError
from mllm_export.export.tower_steps import FUSED, QUANTIZED, SMOOTHED, read_steps
from mllm_export.pixels import tiles_of
from mllm_export.report import Example, Measurement, Rung, rung_of

_SHOWN = 3

_BAD_LAYERS = "layers with values that are no numbers"
_RANGE_OFF = "largest change of a layer's range"
_HALF_RANGE = "largest state over float16's range"

_ENDS = (": worst-token cosine", ": mean-token cosine", ": relative error")


EXACT = "program in float32"
"""The reading of a file that rounds nothing: what is left beside its weights is the graph."""


class Tower:
    """The original's pixels through the export's graph, token by token."""

    measures = (
        "worst-token cosine",
        "mean-token cosine",
        "relative error",
        "relative error over the noise floor",
        "values that are no numbers",
        _BAD_LAYERS,
        _RANGE_OFF,
        _HALF_RANGE,
        "float graph: worst-token cosine",
        "float graph: relative error",
        "float graph: relative error over the noise floor",
        *(f"step '{one}': relative error of a piece" for one in (FUSED, SMOOTHED, QUANTIZED)),
        *(f"program in {one}" + end for one in ("float32", "float16") for end in _ENDS),
        *(f"{EXACT}, on its own weights" + end for end in _ENDS),
    )

    def run(self, context: Context) -> Rung:
        """Compare every case; the float graph too, where a quantized one has it beside it."""
        cases = context.oracle.tower_cases()
        if context.takes_pictures:  # what no picture gives cannot be fed to it
            cases = [case for case in cases if case.picture is not None]
        probes = _probes(context)
        try:
            made = _embeddings(cases, context.subject.embed_pixels)
        except EngineError as failure:
            return _broken(context, len(cases), probes, failure)
        measurements = [
            *_measured(context, cases, made, ""),
            *_ranges(context, cases, made),
            *_probed(context, probes),
        ]
        if context.float_tower is not None:
            context.subject.rest()
            plain = _embeddings(cases, _runner(context.float_tower))
            measurements += _measured(context, cases, plain, "float graph: ")
            measurements += _steps(context, context.float_tower)
        measurements += _further(context, cases)
        return rung_of(
            "tower",
            reference=context.oracle.title,
            samples=len(cases),
            measurements=tuple(measurements),
            examples=_worst(cases, made),
        )


def _embeddings(cases: Sequence[TowerCase], embed: Callable[[Floats], Floats]) -> list[Floats]:
    return [embed(case.pixels) for case in cases]


def _measured(
    context: Context, cases: Sequence[TowerCase], made: Sequence[Floats], of: str
) -> list[Measurement]:
    pairs = [(case.expected, np.nan_to_num(one)) for case, one in zip(cases, made, strict=True)]
    tokens = np.concatenate([cosines(expected, one) for expected, one in pairs])
    errors = [relative_error(expected, one) for expected, one in pairs]
    kind: Kind | None = "f16" if of == "float graph: " else None
    measure = context.limits.measure
    measured = [
        measure("tower", f"{of}worst-token cosine", float(tokens.min()), kind=kind),
        measure("tower", f"{of}mean-token cosine", float(tokens.mean()), kind=kind),
        measure("tower", f"{of}relative error", max(errors), "of the norm", kind=kind),
    ]
    floor = context.live.tower_floor() if context.live else None
    if floor:
        name = f"{of}relative error over the noise floor"
        over = measure("tower", name, max(errors) / floor, "times", kind=kind)
        # Without a limit it says nothing: eight-bit towers are tens of thousands of floors away.
        measured += [] if over.limit is None else [over]
    return measured


def _steps(context: Context, float_tower: Path) -> list[Measurement]:
    """What each step of the build from the float graph to the quantized one moved by itself."""
    found = read_steps(float_tower)
    if found is None:
        return []
    counts = ", ".join(f"{name} {count}" for name, count in found.rewrites if count)
    measure = context.limits.measure
    return [
        measure(
            "tower",
            f"step '{step.name}': relative error of a piece",
            step.relative_error,
            f"of the norm ({counts or 'nothing to fuse'})" if step.name == FUSED else "of the norm",
        )
        for step in found.steps
    ]


def _further(context: Context, cases: Sequence[TowerCase]) -> list[Measurement]:
    """The same file run in other ways, where its engine has some."""
    found: list[Measurement] = []
    for name, open_it in context.other_runs.items():
        context.subject.rest()
        made = _embeddings(cases, open_it())
        found += _measured(context, cases, made, f"{name}: ")
        if name == EXACT and (own := _on_own_weights(context, cases)):
            found += _measured(context, own, made, f"{name}, on its own weights: ")
    return found


def _on_own_weights(context: Context, cases: Sequence[TowerCase]) -> list[TowerCase]:
    """The same cases through the original with the file's weights in it, dequantized.

    Nothing where the original is not at hand, where a tensor is missing, which the weights rung
    tells, and where the program normalises pictures itself, by numbers in float16.
    """
    live, stored = context.live, context.stored.tower
    originals = standing_in(stored, live.reference.tower_originals()) if live else {}
    if live is None or set(originals) - set(stored) or context.takes_pictures:
        return []
    if any(stored[name].shape != one.shape for name, one in originals.items()):
        return []
    reference = live.reference.holding(as_published(stored, originals))
    return [replace(case, expected=reference.embed(case.pixels)[0]) for case in cases]


def _ranges(
    context: Context, cases: Sequence[TowerCase], made: Sequence[Floats]
) -> list[Measurement]:
    bad = sum(int((~np.isfinite(one)).sum()) for one in made)
    measure = context.limits.measure
    largest = max(float(np.abs(np.nan_to_num(one)).max()) for one in made)
    expected = max(float(np.abs(case.expected).max()) for case in cases)
    return [
        measure("tower", "values that are no numbers", bad),
        measure("tower", "largest magnitude", largest),
        measure("tower", "largest magnitude in the original", expected),
    ]


def _probes(context: Context) -> tuple[LayerRange, ...]:
    """Ranges inside, where the original is at hand and stays in memory."""
    if context.live is None:
        return ()
    tiles, original = context.live.tower_probes()
    return layer_ranges(_seams(context), original, tiles) if original else ()


def _seams(context: Context) -> TowerSeams | None:
    """None for a tower that is no file, one that cannot be opened, and one fed with pictures.

    The probes are also of pixels that no picture gives; a file that is broken fails by itself.
    """
    if context.takes_pictures or not context.bundle.find("tower"):
        return None
    manifest = context.bundle.manifest
    with suppress(MllmExportError):
        file = TOWER_FILES[manifest.vision_engine]
        return file.seams(context.bundle.path("tower"), manifest.model)
    return None


def _probed(context: Context, probes: Sequence[LayerRange]) -> list[Measurement]:
    if not probes:
        return []
    measure = context.limits.measure
    largest = max(max(one.original, one.export or 0.0) for one in probes)
    found = [measure("tower", _HALF_RANGE, largest / FLOAT16_LARGEST)]
    if any(one.export is not None for one in probes):
        found += [
            measure("tower", _BAD_LAYERS, sum(one.bad > 0 for one in probes)),
            measure("tower", _RANGE_OFF, max(one.off_by for one in probes), "times"),
        ]
    return found


def _broken(
    context: Context, samples: int, probes: Sequence[LayerRange], failure: EngineError
) -> Rung:
    """The engine gave nothing to compare; the probes say from which layer on."""
    first = next((one.name for one in probes if one.bad), "")
    where = f"; the first values that are no numbers come from {first}" if first else ""
    return Rung(
        name="tower",
        status="failed",
        reference=context.oracle.title,
        samples=samples,
        measurements=tuple(_probed(context, probes)),
        reason=f"{failure}{where}",
    )


def _worst(cases: Sequence[TowerCase], made: Sequence[Floats]) -> tuple[Example, ...]:
    found = []
    for case, one in zip(cases, made, strict=True):
        tokens = cosines(case.expected, np.nan_to_num(one))
        at = int(tokens.argmin())
        found.append((float(tokens[at]), at, case))
    found.sort(key=lambda one: one[0])
    return tuple(
        Example(
            name=case.name,
            reference="",
            export="",
            note=f"worst token {at}: cosine {cosine:.6f}",
            image=thumbnail(case.picture) if case.picture else "",
        )
        for cosine, at, case in found[:_SHOWN]
    )


def _runner(path: Path) -> Callable[[Floats], Floats]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shapes = {port.name: tuple(port.shape) for port in session.get_inputs()}

    def embed(pixels: Floats) -> Floats:
        made = [session.run(None, tile)[0] for tile in tiles_of(pixels, shapes)]
        return np.concatenate(made).astype(np.float32)

    return embed


CHECK = Tower()
