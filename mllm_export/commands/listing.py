"""`mllm-export list`: the names in the catalogs."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from importlib.abc import Traversable

    from mllm_export.catalog import Catalog


class Kind(str, Enum):
    """What can be listed."""

    families = "families"
    encoders = "encoders"
    fusions = "fusions"
    projectors = "projectors"
    decoders = "decoders"
    targets = "targets"
    recipes = "recipes"
    ci = "ci"


def list_names(
    kind: Annotated[Kind, typer.Argument(help="Which catalog.")],
    name: Annotated[
        str, typer.Argument(metavar="[FILE]", help="With 'ci': print that ready file.")
    ] = "",
) -> None:
    """List what can be exported, built for, or asked for; 'ci FILE' prints a ready file."""
    if kind is Kind.ci and name:
        typer.echo(_ci_file(name), nl=False)
        return
    for name, note in _entries(kind):
        typer.echo(f"{name:<16} {note}".rstrip())


def _ci_folder() -> Traversable:
    from importlib.resources import files

    return files("mllm_export.device_tests") / "ci"


def _ci_file(name: str) -> str:
    from mllm_export.catalog import unknown
    from mllm_export.errors import CheckError

    known = [entry for entry, _ in _entries(Kind.ci)]
    if name not in known:
        raise CheckError(unknown("CI file", name, known))
    return (_ci_folder() / name).read_text(encoding="utf-8")


def _entries(kind: Kind) -> list[tuple[str, str]]:
    if kind is Kind.ci:
        return [(entry.name, "") for entry in sorted(_ci_folder().iterdir(), key=lambda e: e.name)]
    if kind is Kind.targets:
        from mllm_export.export.target import load_target, target_names

        return [(name, load_target(name).description) for name in target_names()]
    if kind is Kind.recipes:
        from mllm_export.quantize.recipe import load_recipe, recipe_names

        return [(name, load_recipe(name).description) for name in recipe_names()]
    if kind is Kind.families:
        from mllm_export.export.family import FAMILIES

        return [(name, FAMILIES[name].title) for name in FAMILIES.names()]
    from mllm_export.export.parts import DECODERS, ENCODERS, FUSIONS, PROJECTORS

    catalogs: dict[Kind, Catalog[Any]] = {
        Kind.encoders: ENCODERS,
        Kind.fusions: FUSIONS,
        Kind.projectors: PROJECTORS,
        Kind.decoders: DECODERS,
    }
    return [(name, "") for name in catalogs[kind].names()]
