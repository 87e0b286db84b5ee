"""coremltools, imported once and quietly.

At import it warns of torch and scikit-learn versions it was not tested with, and of Apple's
framework, which only macOS has. What we take from it is held against torch by our own tests.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any


def coremltools() -> Any:
    """The package itself, with its own messages kept to errors."""
    # Set before the import too: most of its warnings are given by the import.
    logging.getLogger("coremltools").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools as imported
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    return imported


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep coremltools' progress bars, and warnings that concern its authors, off the terminal."""
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
