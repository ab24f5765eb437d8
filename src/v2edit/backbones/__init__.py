"""The video models behind one protocol: `load` a model by hub id or folder, and edit with it.

The names below are loaded on first use: those that need torch bring it then.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v2edit.backbones.base import Backbone, Outline, Size, Text
    from v2edit.backbones.registry import BUILT_IN, Checkpoint, find, load, outline

__all__ = ["BUILT_IN", "Backbone", "Checkpoint", "Outline", "Size", "Text", "find", "load", "outline"]

_IN_BASE = ("Backbone", "Outline", "Size", "Text")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'base' if name in _IN_BASE else 'registry'}"), name)
