"""Golden files of an encoder alone: what a check needs where the original is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from mllm_export.device_tests.embedder_oracle import (
    LABELS,
    ImageCase,
    LiveEmbedder,
    TextCase,
    movements,
    templated,
)
from mllm_export.device_tests.golden import JSON, VALUES, load_values, save_values
from mllm_export.device_tests.pictures import Picture, file_picture
from mllm_export.device_tests.reference import Floats
from mllm_export.embedder import EmbedderManifest
from mllm_export.errors import BundleError
from mllm_export.records import from_json, record, to_json

FOLDER = "golden"
_PICTURES = 3
_SCHEMA = 2
"""1 had no patches."""


@record
class GoldenText:
    """A text, its ids, and whether values.npz holds its embedding."""

    text: str
    ids: tuple[int, ...]
    embedded: bool


@record
class GoldenEmbedder:
    """golden.json of an encoder alone."""

    schema: int = _SCHEMA
    reference: str
    pictures: tuple[str, ...]
    """Files beside golden.json; their pixels, embeddings and patches stand in values.npz."""
    texts: tuple[GoldenText, ...]
    movements: dict[str, float]
    """Nats by control; empty without a text tower."""


def write_golden_embedder(folder: Path, live: LiveEmbedder) -> None:
    """Record a few pictures and every text of the prompt rung in a new folder."""
    folder.mkdir()
    spec, values = live.reading.spec, dict[str, Floats]()
    chosen = list(islice(live.pictures, _PICTURES))
    files = [f"picture-{at}.png" for at in range(len(chosen))]
    for at, picture in enumerate(chosen):
        with picture.open() as image:
            image.convert("RGB").save(folder / files[at], "PNG")
        case = live.image_case(live.pixels(picture))
        values[f"pixels-{at}"], values[f"image-{at}"] = case.pixels, case.expected
        values[f"patches-{at}"] = case.patches
    embedded = {case.text: case.expected for case in live.text_cases()}
    texts = tuple(
        GoldenText(text=text, ids=tuple(ids), embedded=text in embedded)
        for text, ids in live.prompt_cases()
    )
    for at, one in enumerate(texts):
        if one.embedded:
            values[f"text-{at}"] = embedded[one.text]
    has_text = spec.text is not None
    moved = movements(live.scores, chosen, templated(spec, LABELS)) if has_text else {}
    golden = GoldenEmbedder(
        reference=live.title, pictures=tuple(files), texts=texts, movements=moved
    )
    (folder / JSON).write_text(to_json(golden), encoding="utf-8")
    save_values(folder / VALUES, values)


class GoldenEmbedderOracle:
    """Expected values from a bundle's golden files; see `EmbedderOracle`."""

    def __init__(self, bundle: Path, manifest: EmbedderManifest) -> None:
        """Raises: BundleError when the bundle has no golden files, or broken ones."""
        folder = bundle / FOLDER
        file = folder / JSON
        if not file.is_file():
            raise BundleError(
                f"{bundle} holds no golden files; check against the original with --against"
            )
        self._golden = from_json(GoldenEmbedder, file.read_bytes(), file, BundleError)
        self._values = load_values(folder / VALUES)
        self._spec = manifest.model
        self.title = f"golden files of the bundle, from: {self._golden.reference}"
        self.pictures: Sequence[Picture] = [
            file_picture(name, folder / name) for name in self._golden.pictures
        ]

    def pixel_cases(self) -> list[tuple[Picture, Floats]]:
        """The golden pictures."""
        return [(p, self._values[f"pixels-{at}"]) for at, p in enumerate(self.pictures)]

    def prompt_cases(self) -> list[tuple[str, list[int]]]:
        """The golden texts."""
        return [(one.text, list(one.ids)) for one in self._golden.texts]

    def image_cases(self) -> list[ImageCase]:
        """The golden pixels."""
        return [
            ImageCase(
                pixels=pixels,
                expected=self._values[f"image-{at}"],
                patches=self._values[f"patches-{at}"],
            )
            for at, (_, pixels) in enumerate(self.pixel_cases())
        ]

    def text_cases(self) -> list[TextCase]:
        """Those that were embedded."""
        return [
            TextCase(text=one.text, expected=self._values[f"text-{at}"])
            for at, one in enumerate(self._golden.texts)
            if one.embedded
        ]

    def movements(self) -> Mapping[str, float]:
        """As recorded."""
        return self._golden.movements
