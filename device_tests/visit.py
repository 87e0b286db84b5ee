"""One visit to a device: the runtime and the bundle go there, a job is done, results come back."""

from __future__ import annotations

import json
import secrets
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm_export.bundle import MANIFEST, Bundle
from mllm_export.device_tests.device import Completed, Link, done_so_far
from mllm_export.device_tests.reference import Floats
from mllm_export.device_tests.runtime_archive import write_runtime
from mllm_export.device_tests.transfer import Sent, Wanted, push
from mllm_export.errors import DeviceError, DeviceLostError
from mllm_export.hashing import file_sha256, text_sha256
from mllm_export.progress import Progress
from mllm_export.records import from_json, to_json
from mllm_export.runtimes.job import JOB, RESULT, VALUES, Description, Job, Result
from mllm_export.runtimes.opening import require_features, require_version

_ILLEGAL_INSTRUCTION = (132, -4)
"""SIGILL as a shell and as subprocess tell it."""

_KILLED = (137, -9)
"""SIGKILL, which Linux sends when memory is out."""

_REFUSED = "error: "
"""How the runner begins the line with which it refuses."""

_NO_PYTHON = 127
"""Source: POSIX shell, exit status of a command that is not found."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What a job brought back."""

    result: Result
    values: dict[str, Floats]
    counts: tuple[Mapping[str, int], ...]
    """Lines of the instruction counter, in the order of the marks; empty without it."""


class Visit:
    """A device with the runtime on it. Use it as a context manager's subject, or close it."""

    def __init__(self, link: Link, timeout_s: float, progress: Progress) -> None:
        """Send the runtime and ask what the device is.

        Raises: DeviceError when it cannot be reached, or lacks Python or a package.
        """
        self.link = link
        self._timeout_s = timeout_s
        self._progress = progress
        self._archive = self._send_runtime()
        self.description = self._describe()

    def push(self, bundle: Bundle) -> tuple[str, Sent]:
        """The bundle's folder on the device, and what was sent.

        Raises: DeviceError for a device that cannot run it, or a transfer that failed.
        """
        self._require_fit(bundle)
        manifest = bundle.folder / MANIFEST
        files = {
            one.path: Wanted(
                path=bundle.folder / one.path, sha256=one.sha256, size_bytes=one.size_bytes
            )
            for one in bundle.manifest.files
        }
        key = file_sha256(manifest)[:16]
        folder = f"{self.link.home}/bundles/{key}"
        # Last, so that a loader on the device never takes half a bundle.
        sent = push(self.link, folder, files, self._timeout_s, self._progress)
        push(self.link, folder, {MANIFEST: _wanted(manifest)}, self._timeout_s, self._progress)
        return folder, sent

    def run(self, remote_bundle: str, job: Job, pictures: Mapping[str, Path]) -> Outcome:
        """Do the job there; `pictures` are the files it names.

        Raises: DeviceError with what the runner said, and what was done so far.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / JOB
            file.write_text(to_json(job), encoding="utf-8")
            files = {name: _wanted(path) for name, path in {**pictures, JOB: file}.items()}
            # Two visits at once may share what they read, and never what they write.
            remote = f"{self.link.home}/jobs/{_key(files)}"
            out = f"{remote}/{secrets.token_hex(4)}"
            push(self.link, remote, files, self._timeout_s, self._progress)
            command = self._command(f"run {shlex.join((remote_bundle, remote, out))}")
            done, counts = self._start(command, job.marks)
            try:
                self._require_success(done)
                return self._collect(out, Path(folder), counts, done.err)
            finally:
                with suppress(DeviceError):
                    self._shell(f"rm -rf {shlex.quote(out)}")

    def close(self) -> None:
        """End the connection; what was sent stays for the next visit."""
        self.link.close()

    def _start(self, command: str, counted: bool) -> tuple[Completed, str]:
        if counted and self.link.counter is None:
            raise DeviceError(
                f"{self.link.title}: instructions are counted on emulated devices only; name one "
                "such as qemu:cortex-a76"
            )
        try:
            if self.link.counter is not None and counted:
                return self.link.counter(command, self._timeout_s)
            return self._shell(command), ""
        except DeviceLostError as lost:
            raise _in_the_middle(lost, lost.printed) from lost

    def _collect(self, remote: str, folder: Path, counts: str, printed: bytes) -> Outcome:
        try:
            for name in (RESULT, VALUES):
                self.link.fetch(f"{remote}/{name}", folder / name, self._timeout_s)
        except DeviceError as lost:  # adb ends with 0 when its cable is pulled
            raise _in_the_middle(lost, printed) from lost
        result = from_json(Result, (folder / RESULT).read_bytes(), RESULT, DeviceError)
        with np.load(folder / VALUES, allow_pickle=False) as archive:
            values = {name: archive[name] for name in archive.files}
        lines = tuple(json.loads(line) for line in counts.splitlines())
        return Outcome(result=result, values=values, counts=lines)

    def _send_runtime(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            archive = write_runtime(Path(folder) / "runtime.zip")
            wanted = _wanted(archive)
            name = f"runtime-{wanted.sha256[:16]}.zip"
            push(self.link, self.link.home, {name: wanted}, self._timeout_s, self._progress)
        return f"{self.link.home}/{name}"

    def _describe(self) -> Description:
        done = self.link.shell(self._command("describe"), self._timeout_s)
        self._require_success(done)
        return from_json(Description, done.out, f"{self.link.title}: describe", DeviceError)

    def _command(self, words: str) -> str:
        return f"{self.link.python} {shlex.quote(self._archive)} {words}"

    def _shell(self, command: str) -> Completed:
        return self.link.shell(command, self._timeout_s)

    def _require_fit(self, bundle: Bundle) -> None:
        """Refuse before megabytes are sent what the device's runtime would refuse after it."""
        manifest, device, title = bundle.manifest, self.description, self.link.title
        if manifest.arch and manifest.arch != device.architecture:
            raise DeviceError(
                f"{title} is {device.architecture}, {bundle.folder} was built for "
                f"{manifest.target} ({manifest.arch}); build for a target of the device's "
                "architecture"
            )
        require_version(bundle, device.runtime, title)
        features = None if device.cpu_features is None else frozenset(device.cpu_features)
        require_features(bundle, device.architecture, features, title)

    def _require_success(self, done: Completed) -> None:
        if not done.code:
            return
        title, said = self.link.title, done.last_line()
        if done.code in _ILLEGAL_INSTRUCTION:
            raise DeviceError(
                f"{title}: an engine ran into an instruction that this CPU does not have; "
                "was llama-cpp-python compiled for another CPU?"
            )
        if done.code == _NO_PYTHON:
            raise DeviceError(
                f"{title}: no Python there ({said}); install Python 3.10 or later, or name it "
                "with --device-python. A device that cannot have Python is not supported yet"
            )
        if said.startswith(_REFUSED):
            raise DeviceError(f"{title}: {said.removeprefix(_REFUSED)}")
        if "ModuleNotFoundError" in said:
            raise DeviceError(
                f"{title}: {said}; install there: pip install numpy pillow pydantic onnxruntime "
                "llama-cpp-python"
            )
        did = done_so_far(done.err)
        killed = "; it was killed, has the device too little memory?"
        raise DeviceError(
            f"{title}: the runner ended with {done.code}: {said}"
            + (f" (it had done: {did})" if did else "")
            + (killed if done.code in _KILLED else "")
        )


def _in_the_middle(lost: DeviceError, printed: bytes) -> DeviceError:
    did = done_so_far(printed) or "nothing yet"
    return DeviceError(
        f"{lost} (the bundle is on the device and stays there; of the job it had done: {did})"
    )


def _key(files: Mapping[str, Wanted]) -> str:
    """The same for the same files."""
    words = "\n".join(f"{name} {one.sha256}" for name, one in sorted(files.items()))
    return text_sha256(words)[:16]


def _wanted(path: Path) -> Wanted:
    return Wanted(path=path, sha256=file_sha256(path), size_bytes=path.stat().st_size)
