"""The command as a user meets it: arguments in, exit code and two streams out."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mllm_export.cli import main
from mllm_export.export.families.mobilevlm import FAMILY
from mllm_export.export.random_checkpoint import write_random_checkpoint
from mllm_export.records import record


@record
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what was wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


Run = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call `mllm-export` in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mllm-export", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code
        shown = capfd.readouterr()
        return Outcome(code=int(str(code or 0)), out=shown.out, err=shown.err)

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny V2 checkpoint and its tower's folder; do not change it."""
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "model", FAMILY.tiny())


@pytest.fixture(scope="session")
def unchecked(made: Path) -> Path:
    """The tiny checkpoint's f16 bundle, built with --no-check; do not change it."""
    out = made.parent / "unchecked"
    asked = ("build", made, "--target", "linux-x86_64", "--recipe", "f16", "-o", out, "--no-check")
    subprocess.run([sys.executable, "-m", "mllm_export", *map(str, asked)], check=True)
    return out


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to break."""
    shutil.copytree(made.parent, tmp_path / "models")
    return tmp_path / "models" / "model"
