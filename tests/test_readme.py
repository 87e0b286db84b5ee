"""What the README says of the command is what the command has."""

import re
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from mllm_export.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def verbs() -> list[str]:
    return re.findall(r"^\| `(\w+) ", README, flags=re.MULTILINE)


def test_the_readme_lists_every_verb() -> None:
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    assert verbs() == list(command.commands)


@pytest.mark.parametrize("verb", verbs())
def test_every_option_the_readme_shows_exists(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    rows = [line for line in README.splitlines() if re.search(rf"(mllm-export|`){verb}? ", line)]
    options = set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", " ".join(r for r in rows if verb in r)))
    for option in options - {"--recipe", "--target", "--image", "--prompt", "-o"} | (
        {"--target", "-o"} if verb == "build" else set()
    ):
        assert option in shown.output, option


def test_the_targets_and_recipes_shown_exist() -> None:
    from mllm_export.export.target import target_names
    from mllm_export.quantize.recipe import recipe_names

    assert set(re.findall(r"--target ([\w-]+)", README)) - {"T"} <= set(target_names())
    assert set(re.findall(r"--recipe (\w+)", README)) - {"R"} <= set(recipe_names())


def test_a_build_for_llama_cpps_tools_keeps_the_file_they_need() -> None:
    """A checked one leaves it out for CLIP's towers, and what is shown next would be refused."""
    builds = re.findall(r"^mllm-export build .*--mmproj.*$", README, flags=re.MULTILINE)
    assert builds
    assert all("--no-check" in line for line in builds)
