"""DPAR: Dynamic Patchification for Efficient Autoregressive Visual Generation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpar.generator import Generator
    from dpar.model.dpar import DPAR

__version__ = "0.1.0"
__all__ = ["DPAR", "Generator"]

_PLACES = {"Generator": "dpar.generator", "DPAR": "dpar.model.dpar"}


def __getattr__(name: str) -> Any:  # torch is imported when it is needed: most commands do without
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
