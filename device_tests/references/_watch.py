"""A look at what enters the layers of any reference while it runs, and a hand on it.

Every module that `_fill` makes is watched under its published prefix, and so are the numbered
modules inside it; a reference needs no code of its own to be walked layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Watcher = Callable[[str, tuple[Any, ...], dict[str, Any]], Arguments | None]
"""Published prefix, positional and named arguments; other arguments instead, or None."""

_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """While the block runs, `watcher` is told of every watched module before it runs."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def watch(module: nn.Module, prefix: str) -> None:
    """Make a filled module known by its published prefix, and its numbered inner ones."""
    if prefix:
        module.register_forward_pre_hook(partial(_tell, prefix), with_kwargs=True)
    for name, inner in module.named_modules():
        if name.rpartition(".")[2].isdigit():
            told = partial(_tell, f"{prefix}{name}.")
            inner.register_forward_pre_hook(told, with_kwargs=True)


def _tell(
    prefix: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Arguments | None:
    watcher = _WATCHER.get()
    return None if watcher is None else watcher(prefix, args, kwargs)
