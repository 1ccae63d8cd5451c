"""Trained weights: where they are, what they are, how they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avsseg.weights.store import LoadedModel, load_model, save_model

__all__ = ["LoadedModel", "load_model", "save_model"]


def __getattr__(name: str) -> Any:
    # torch is imported at the first use of one of these, not with the package
    if name in __all__:
        from avsseg.weights import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
