"""From a bundle's folder to a session, or a sentence why not."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from mllm_export import __version__
from mllm_export.bundle import Bundle, FileRole, check_file, open_bundle
from mllm_export.catalog import Catalog
from mllm_export.errors import BundleError, EngineError
from mllm_export.kv_cache import KvType
from mllm_export.runtimes.beginning import Kept, begin, begin_here, bundled
from mllm_export.runtimes.engines import (
    DECODER_ENGINES,
    VISION_ENGINES,
    Decoder,
    KeepsBeginning,
    Tower,
)
from mllm_export.runtimes.machine import architecture, cpu_features, usable_cores
from mllm_export.verified import holds

if TYPE_CHECKING:
    from mllm_export.runtimes.session import Session

T = TypeVar("T")

_SESSION = "mllm_export.runtimes.session"

SMALL_BYTES = 32 << 20
"""Measured: a 2 MB decoder answered in 0.02 s with one thread beside other work, in 0.8 s with
two on two cores."""


def open_session(
    folder: str | Path,
    threads: int | None,
    context_tokens: int | None,
    verify: bool,
    kv_type: KvType | None = None,
) -> Session:
    """See `mllm_export.runtimes.load`."""
    bundle = open_bundle(Path(folder), verify=False)
    require_version(bundle, __version__)
    require_features(bundle, architecture(), cpu_features())
    manifest, spec = bundle.manifest, bundle.manifest.model
    tower_path, decoder_path = bundle.path("tower"), bundle.path("decoder")
    context = _context(bundle, context_tokens)
    cores = usable_cores() if threads is None else threads
    if cores < 1:
        raise EngineError(f"threads is {cores}, needed: at least 1")
    alone = threads is None and is_small(decoder_path)
    kv = kv_type or manifest.kv_type

    # The decoder takes longest to open, so that its engine's import comes before all others.
    imported = Event()

    def open_tower(ready: Future[None]) -> Tower:
        imported.wait()
        engine = _engine(VISION_ENGINES, manifest.vision_engine, bundle)
        ready.result()
        return engine.open(tower_path, spec, cores)

    def open_decoder(ready: Future[None]) -> Decoder:
        try:
            engine = _engine(DECODER_ENGINES, manifest.decoder_engine, bundle)
        finally:
            imported.set()
        ready.result()
        return engine.open(decoder_path, spec, context, 1 if alone else cores, kv)

    def meanwhile() -> Kept | None:
        imported.wait()
        importlib.import_module(_SESSION)
        return bundled(bundle)

    tower, decoder, beginning = _open_all(bundle, verify, open_tower, open_decoder, meanwhile)
    if isinstance(decoder, KeepsBeginning):
        begun = beginning is not None and begin(bundle, decoder, kv, beginning)
        # What was not compared with its hash must not leave a state under that hash.
        if not begun and verify and not is_small(decoder_path):
            begin_here(bundle, decoder, kv)
    from mllm_export.runtimes.session import Session

    return Session(bundle, tower, decoder)


def _open_all(
    bundle: Bundle,
    verify: bool,
    open_tower: Callable[[Future[None]], Tower],
    open_decoder: Callable[[Future[None]], Decoder],
    meanwhile: Callable[[], T],
) -> tuple[Tower, Decoder, T]:
    """Both at once, for each takes one core; neither reads a file before its hash was compared.

    Raises: what is wrong with a file before what an engine says of it.
    """
    with ThreadPoolExecutor(5) as pool:
        checks = [
            pool.submit(_compare, bundle, verify, "decoder"),
            pool.submit(_compare, bundle, verify, "tower"),
        ]
        decoder = pool.submit(open_decoder, checks[0])
        tower = pool.submit(open_tower, checks[1])
        rest = pool.submit(meanwhile)
        wait([tower])
        # No engine waits for the state, and the decoder takes longer than the tower.
        checks.append(pool.submit(_compare, bundle, verify, "prefix"))
    done: list[Future[Any]] = [*checks, decoder, tower, rest]
    failure = next((found for one in done if (found := one.exception())), None)
    if failure is None:
        return tower.result(), decoder.result(), rest.result()
    if decoder.exception() is None:
        decoder.result().close()
    if tower.exception() is None:
        tower.result().close()
    raise failure


def _compare(bundle: Bundle, verify: bool, role: FileRole) -> None:
    """The hashes of one artifact's files."""
    for file in bundle.manifest.files if verify else ():
        if file.role == role:
            check_file(bundle.folder, file, verify, holds)


def is_small(decoder: Path) -> bool:
    """Whether one thread is as fast as several, and waits for none on a busy machine."""
    return decoder.stat().st_size < SMALL_BYTES


def require_version(bundle: Bundle, runtime: str, where: str = "this") -> None:
    """Raises: BundleError when the bundle needs a later runtime than `where` has."""
    needed = bundle.manifest.minimum_runtime
    # A development version such as 0.2.0.dev1 counts as 0.2.0.
    found = tuple(int(number) for number in re.findall(r"\d+", runtime)[:3])
    if needed > found:
        wanted = ".".join(str(number) for number in needed)
        raise BundleError(
            f"{bundle.folder} needs mllm-export {wanted} or later, {where} is {runtime}; "
            "upgrade the runtime"
        )


def require_features(
    bundle: Bundle, arch: str, found: frozenset[str] | None, where: str = "this CPU"
) -> None:
    """Refuse before an engine runs into an instruction that the CPU does not have.

    A bundle for another architecture may be looked at: its artifacts hold no machine code.

    Raises: BundleError naming the features that are missing.
    """
    if found is None or bundle.manifest.arch != arch:
        return
    missing = [name for name in bundle.manifest.cpu_features if name not in found]
    if missing:
        raise BundleError(
            f"{bundle.folder} was built for target {bundle.manifest.target}, whose CPUs have "
            f"{', '.join(missing)}; {where} has not: build for a target that fits it"
        )


def _engine(catalog: Catalog[T], name: str, bundle: Bundle) -> T:
    try:
        return catalog[name]
    except BundleError as failure:
        raise BundleError(f"{bundle.folder} cannot run here: {failure}") from None


def _context(bundle: Bundle, asked: int | None) -> int:
    context = bundle.manifest.context_tokens if asked is None else asked
    trained = bundle.manifest.model.decoder.context_tokens
    if not 1 <= context <= trained:
        raise EngineError(
            f"a context of {context} tokens was asked for, "
            f"the model takes 1 to {trained}; choose one of these"
        )
    return context
