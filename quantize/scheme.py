"""Words for how weights are stored, by part of the model."""

from __future__ import annotations

from mllm_export.catalog import unknown
from mllm_export.errors import RecipeError
from mllm_export.quantize.layout import LAYOUTS, stored_bytes
from mllm_export.records import record

_MIXTURES = ("_S", "_M", "_L")


@record
class Choice:
    """What one tensor gets."""

    scheme: str
    note: str = ""
    """Why the scheme is not the one asked for, if it is not."""


def require_layout(scheme: str, where: str) -> None:
    """Raise RecipeError, with the near names, for a word that is no file in quantize/layouts."""
    if scheme not in LAYOUTS.names():
        raise RecipeError(f"{where}: {unknown('decoder scheme', scheme, LAYOUTS.names())}")


def require_file_word(word: str, where: str) -> None:
    """Raise RecipeError for a word that is neither a layout nor one of its mixtures.

    Source: llama.h, enum llama_ftype: Q4_K_M is a file of Q4_K with some tensors wider.
    """
    layout = word[:-2] if word.endswith(_MIXTURES) and word[:-2] in LAYOUTS.names() else word
    require_layout(layout, where)


def fit_layout(scheme: str, shape: tuple[int, ...], least: str = "") -> Choice:
    """The layout asked for, or the next one down whose blocks divide the rows.

    A layout of fewer bits than `least` gives way to that one.

    Source: llama.cpp, src/llama-quant.cpp, tensor_type_fallback.
    """
    if least and stored_bytes(scheme, (256,)) < stored_bytes(least, (256,)):
        held = fit_layout(least, shape)
        why = f"{held.scheme} instead of {scheme}: its error is carried on from token to token"
        return Choice(scheme=held.scheme, note="; ".join(filter(None, (why, held.note))))
    chosen = scheme
    while not LAYOUTS[chosen].fits(shape[-1]):
        chosen = LAYOUTS[chosen].fallback
    if chosen == scheme:
        return Choice(scheme=scheme)
    return Choice(
        scheme=chosen,
        note=f"{chosen} instead of {scheme}: a row of {shape[-1]} is not whole blocks of it",
    )
