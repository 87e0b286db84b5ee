"""The package list, the wheel and the import rules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mllm_export.errors import MllmExportError
from mllm_export.toml import read_toml

ROOT = Path(__file__).parents[1]
STAGES = ("device_tests", "export", "quantize", "runtimes")

ALLOWED = {
    "mllm_export": set(),
    "quantize": {"mllm_export"},
    "export": {"quantize", "mllm_export"},
    "runtimes": {"mllm_export"},
    "device_tests": {"export", "quantize", "runtimes", "mllm_export"},
}
"""Which stage may import which at module level and inside functions."""

NOT_ON_A_DEVICE = {
    "gguf",
    "ml_dtypes",
    "onnx",
    "onnxscript",
    "optimum",
    "safetensors",
    "sentencepiece",
    "sklearn",
    "threadpoolctl",
    "timm",
    "torch",
    "torchvision",
    "transformers",
}


def folder_of(package: str) -> Path:
    parts = package.split(".")
    return ROOT.joinpath(*(parts[1:] if len(parts) > 1 and parts[1] in STAGES else parts))


def packages_on_disk() -> set[str]:
    found = set()
    for top in ("mllm_export", *STAGES):
        prefix = "" if top == "mllm_export" else "mllm_export."
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(prefix + ".".join(init.parent.relative_to(ROOT).parts))
    return found


def test_every_package_folder_is_listed_so_that_the_wheel_has_it() -> None:
    listed = read_toml(ROOT / "pyproject.toml", MllmExportError)["tool"]["setuptools"]["packages"]
    assert set(listed) == packages_on_disk()
    assert len(listed) == len(set(listed))


def test_every_folder_with_modules_is_a_package() -> None:
    for top in ("mllm_export", *STAGES):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


def modules() -> list[Path]:
    return sorted(p for top in ALLOWED for p in (ROOT / top).rglob("*.py"))


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Every import as (module, at module level and not only for type checkers)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            eager = id(node) not in lazy
            found += [(f"{node.module}.{alias.name}", eager) for alias in node.names]
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def stage_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in STAGES else "mllm_export"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT)
    stage = relative.parts[0]
    # Verbs may reach every stage, inside the function that needs it.
    is_verb = relative.parts[:2] == ("mllm_export", "commands") or path.name == "demo.py"
    for module, eager in imports_of(path):
        if module.split(".")[0] != "mllm_export":
            continue
        target = stage_of(module)
        allowed = target == stage or target in ALLOWED[stage] or (is_verb and not eager)
        assert allowed, f"{relative} imports {module}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "runtimes").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_runtime_names_nothing_that_a_device_lacks(path: Path) -> None:
    for module, _ in imports_of(path):
        assert module.split(".")[0] not in NOT_ON_A_DEVICE, f"{path.name} imports {module}"


def test_a_forbidden_import_would_be_seen(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("from mllm_export.export import build\ndef f():\n    import torch\n")
    assert imports_of(planted) == [("mllm_export.export.build", True), ("torch", False)]
    assert stage_of("mllm_export.export.build") not in ALLOWED["runtimes"]


@pytest.mark.parametrize(
    "code",
    [
        "import mllm_export.cli",
        "import mllm_export.runtimes",
        "import mllm_export.bundle, mllm_export.plan, mllm_export.report",
        "from mllm_export.export.family import FAMILIES; [FAMILIES[n] for n in FAMILIES.names()]",
    ],
)
def test_neither_the_command_nor_the_catalogs_load_torch(code: str) -> None:
    loaded = "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    program = f"{code}\nimport sys\n{loaded}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
