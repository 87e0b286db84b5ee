"""Core ML towers: encoders x projectors x schemes, from the saved package against the original.

    python -m mllm_export.device_tests.benchmarks.coreml -o table.md
    python -m mllm_export.device_tests.benchmarks.coreml --encoder dinov2 --projector fused_ldpnet
    python -m mllm_export.device_tests.benchmarks.coreml --full -o full.md

Weights are random; the original is transformers' or timm's tower and the authors' projector in
float32, on noise. `--full` takes CLIP ViT-L/14-336 and LDPv2 in their published shapes in place
of the small twins, and prints the time and peak memory of every process.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Annotated

import numpy as np
import typer

from mllm_export.config import Config
from mllm_export.device_tests.distributions import cosines, relative_error
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.reference_tower import REFERENCE_TOWERS, TowerSource, kind_of
from mllm_export.device_tests.stored import Stored
from mllm_export.device_tests.stored_coreml import read_coreml
from mllm_export.device_tests.towers.coreml import EvaluatedGraph
from mllm_export.export.child import run_in_child
from mllm_export.export.coreml_compress import compress
from mllm_export.export.coreml_options import CoremlOptions
from mllm_export.export.coreml_plan import plan_coreml_tensors
from mllm_export.export.coreml_scheme import COREML_SCHEMES
from mllm_export.export.formats.coreml import write_tower
from mllm_export.export.mil_program import read_program
from mllm_export.export.parts import ENCODERS as KINDS
from mllm_export.export.parts import PROJECTORS
from mllm_export.export.published_towers import CLIP_L_336
from mllm_export.export.random_checkpoint import random_tensor
from mllm_export.export.stored import to_published
from mllm_export.export.tower_choice import encoder_for
from mllm_export.pages import peak_bytes
from mllm_export.plan import TensorPlan
from mllm_export.progress import Progress, silent
from mllm_export.records import record
from mllm_export.spec import IMAGE_EMBEDS, VisionSpec

_SIZES = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 96, "patch_size": 4,
}  # fmt: skip
_BLOCKS = {"depth": 3, "num_heads": 4, "img_size": 84}
ENCODERS: Mapping[str, dict[str, object]] = {
    "clip_vit": {"model_type": "clip_vision_model", **_SIZES},
    "dinov2": {
        "architecture": "vit_small_patch14_reg4_dinov2",
        "model_args": {"embed_dim": 64, **_BLOCKS},
    },
    "siglip": {"model_type": "siglip_vision_model", **_SIZES},
    "siglip_timm": {
        "architecture": "vit_so400m_patch14_siglip_384",
        "model_args": {"embed_dim": 64, "mlp_ratio": 2.5, **_BLOCKS},
    },
    "vitamin": {
        "architecture": "vitamin_small_224",
        "model_args": {"depth": 3, "img_size": 96},
    },
}
"""Configs of small towers in their published words, by file in export/encoders."""

_AUTHORS: Mapping[str, str] = {
    "fused_gelu_mlp": "fused-gelu-mlp",
    "fused_ldpnet": "fused-ldpnet",
    "ldp": "ldpnet",
    "ldpv2": "ldpnetv2",
    "linear": "linear",
    "mlp2x_gelu": "mlp2x_gelu",
}
"""File in export/projectors to its published name."""

HEAD = (
    "| encoder | projector | scheme | KiB | float32: worst cosine, error | float16: worst cosine, "
    "error | float32 on its own weights, error | compressed, kept | s |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@record
class Case:
    """A tower and a projector, by published config."""

    encoder: str
    config: dict[str, object]
    projector: str
    out_width: int

    @property
    def vision(self) -> VisionSpec:
        """Cut at hidden state -2."""
        config = Config(self.config, "config.json")
        kind = encoder_for(config)
        encoder = kind.read_spec(config, kind.image(config, "pad"), -2, False)
        projector = PROJECTORS[self.projector].spec(
            encoder.width, self.out_width, encoder.tokens_out
        )
        return VisionSpec(encoders=(encoder,), projector=projector)

    def read(self, part: str) -> Callable[[str], Floats]:
        """Random values of a part, by published name."""
        vision = self.vision
        parameters = (
            PROJECTORS[self.projector].parameters(vision.projector)
            if part == "projector"
            else encoder_for(Config(self.config, "config.json")).parameters(vision.encoders[0])
        )
        return lambda name: random_tensor(f"{part}.{name}", tuple(parameters[name]), 0)

    def original(self, pixels: Floats, stored: Mapping[str, Stored] | None = None) -> Floats:
        """The original's embeddings f32[T, D], with the file's own weights where given."""
        import torch

        from mllm_export.device_tests.references._cobra import PROJECTORS as COBRAS
        from mllm_export.device_tests.references._fill import fill
        from mllm_export.device_tests.references._projectors import PROJECTORS as MOBILEVLMS

        def read(part: str, prefix: str) -> Callable[[str], Floats]:
            plain = self.read(part)

            def value(whole: str) -> Floats:
                name = whole.removeprefix(prefix)
                if stored is None:
                    return plain(name)
                held = stored[f"{part}.{name}"]
                values = held.values(0, held.shape[0])
                return np.asarray(to_published(name, plain(name).shape, values), np.float32)

            return value

        config = Config(self.config, "config.json")
        make = {**COBRAS, **MOBILEVLMS}[_AUTHORS[self.projector]]
        source = TowerSource(
            kind=kind_of(config),
            config=config,
            read=read("tower", ""),
            prefix="",
            select_layer=-2,
            feature="patch",
        )
        features = REFERENCE_TOWERS[source.kind].open(source, torch.float32).features(pixels)
        width = self.vision.encoders[0].width
        prefix = getattr(make, "prefix", "")
        head = fill(lambda: make(width, self.out_width), read("projector", prefix), prefix)
        with torch.inference_mode():
            return np.asarray(head(features)[0].numpy(), np.float32)


def write_stage(case: Case, path: Path, options: CoremlOptions, progress: Progress) -> float:
    """The package in float16; returns this process's peak in MiB."""
    write_tower(path, case.vision, case.read("tower"), case.read("projector"), options, progress)
    return peak_bytes() / (1 << 20)


def compress_stage(path: Path, rows: tuple[TensorPlan, ...], progress: Progress) -> float:
    """Each weight as planned; returns this process's peak in MiB."""
    del progress
    compress(path, {row.name: row.scheme for row in rows})
    return peak_bytes() / (1 << 20)


def measure(case: Case, folder: Path, schemes: Sequence[str]) -> Iterator[str]:
    """A row for float16 and each scheme, the program's operations, and what its writing took."""
    options = CoremlOptions(deployment="macOS15")
    plain = folder / "tower.mlpackage"
    start = monotonic()
    peaks = {"f16": run_in_child("write", write_stage, case, plain, options, progress=silent)}
    seconds = {"f16": monotonic() - start}
    side = case.vision.encoders[0].image.size_px
    pixels = np.random.default_rng(3).standard_normal((1, 3, side, side)).astype(np.float32)
    expected = case.original(pixels)
    for scheme in ("f16", *schemes):
        names = _AnyName()
        word = "f32" if scheme == "f16" else scheme
        rows = plan_coreml_tensors(case.vision, names, word, options)
        path = plain
        if scheme != "f16":
            path = folder / f"{scheme}.mlpackage"
            shutil.copytree(plain, path)
            start = monotonic()
            peaks[scheme] = run_in_child("compress", compress_stage, path, rows, progress=silent)
            seconds[scheme] = monotonic() - start
        yield _row(case, scheme, path, rows, pixels, expected, seconds[scheme])
        if path is not plain:
            shutil.rmtree(path)
    counts = ", ".join(f"{n} {name}" for name, n in read_program(plain).counts().items())
    yield f"\n{case.encoder}, {case.projector}: {counts}"
    told = ", ".join(f"{name} {peak:.0f} MiB" for name, peak in peaks.items())
    yield f"\n{case.encoder}, {case.projector}: peak of the process that wrote it: {told}"


class _AnyName(dict[str, str]):
    """Every tensor is its own source."""

    def __missing__(self, name: str) -> str:
        return name


def _row(
    case: Case,
    scheme: str,
    path: Path,
    rows: tuple[TensorPlan, ...],
    pixels: Floats,
    expected: Floats,
    seconds: float,
) -> str:
    image = case.vision.encoders[0].image
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    compressed = sum(row.scheme != "f16" for row in rows)
    told = []
    for precision in ("float32", "float16"):
        made = EvaluatedGraph(path, image, precision)(pixels)[IMAGE_EMBEDS]
        worst = float(cosines(expected, made).min())
        told.append(f"{worst:.6f}, {relative_error(expected, made):.1e}")
        if precision == "float32":
            own = relative_error(case.original(pixels, read_coreml(path)), made)
    return (
        f"| {case.encoder} | {case.projector} | {scheme} | {size / 1024:.0f} | {told[0]} "
        f"| {told[1]} | {own:.1e} | {compressed}, {len(rows) - compressed} | {seconds:.1f} |"
    )


def cases_of(encoders: Sequence[str] | None, projectors: Sequence[str] | None) -> list[Case]:
    """Small towers: every pair of the two catalogs, or of those that are asked for."""
    return [
        Case(encoder=name, config=ENCODERS[name], projector=projector, out_width=96)
        for name in encoders or KINDS.names()
        for projector in projectors or PROJECTORS.names()
    ]


def main(
    out: Annotated[Path | None, typer.Option("-o", help="Also write the table there.")] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="Only this one (repeatable).")] = None,
    projector: Annotated[list[str] | None, typer.Option(help="Only this one (repeatable).")] = None,
    full: Annotated[bool, typer.Option(help="Published shapes of one pair.")] = False,
    scheme: Annotated[
        list[str] | None, typer.Option(help="Only this one beside float16 (repeatable).")
    ] = None,
) -> None:
    """Print the table, a row as soon as it is measured."""
    import torch

    torch.set_num_threads(1)
    schemes = scheme or COREML_SCHEMES.names()
    cases = (
        [Case(encoder="ViT-L/14-336", config=CLIP_L_336, projector="ldpv2", out_width=2048)]
        if full
        else cases_of(encoder, projector)
    )
    lines: list[str] = [HEAD]
    behind: list[str] = []
    typer.echo(HEAD)
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            for line in measure(case, Path(folder), schemes):
                (lines if line.startswith("|") else behind).append(line)
                typer.echo(line)
    if out is not None:
        out.write_text("\n".join(lines + behind) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
