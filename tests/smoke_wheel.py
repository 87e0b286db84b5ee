"""Build the wheel, install it in a clean environment, and answer a question with it.

The environment gets the base install alone: neither torch nor transformers. The bundle is built
by the developer's environment that runs this script. Prints `1 passed, 0 failed` when it holds.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

QUESTION = """
import json, sys
from pathlib import Path
from mllm_export.runtimes import load
from mllm_export.export import reference
data = Path(reference.__path__[0]) / "data"
row = json.loads((data / "demo" / "questions.jsonl").read_text().splitlines()[0])
with load(Path(sys.argv[1])) as session:
    answer = session.answer(row["question"], data / "demo" / row["image"])
assert answer in row["answers"], (answer, row)
heavy = {"torch", "transformers", "onnx", "gguf"} & set(sys.modules)
assert not heavy, heavy
print(row["question"], answer)
"""


def call(*command: object, cwd: Path) -> None:
    print("$", *(Path(str(c)).name if "/" in str(c) else c for c in command[:4]), flush=True)
    subprocess.run([str(c) for c in command], check=True, cwd=cwd)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        bundle = work / "bundle"
        call(sys.executable, "-m", "build", "--wheel", "-o", work, ROOT, cwd=work)
        wheel = next(work.glob("*.whl"))
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        pins = ROOT / "constraints.txt"
        call(python, "-m", "pip", "install", "-q", "-c", pins, wheel, cwd=work)
        command = work / "venv" / "bin" / "mllm-export"
        call(command, "--help", cwd=work)
        call(command, "list", "targets", cwd=work)
        own = Path(sys.executable).with_name("mllm-export")
        call(own, "build", "reference", "--target", "linux-x86_64", "-o", bundle, cwd=work)
        call(python, "-c", QUESTION, bundle, cwd=work)
        print("1 passed, 0 failed")


if __name__ == "__main__":
    main()
