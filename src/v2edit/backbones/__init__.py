"""The video models behind one protocol: `load` a model by hub id or folder, and edit with it.

The names below are loaded on first use: those that need torch bring it then.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v2edit.backbones.base import Backbone, Outline, Size, Text
    from v2edit.backbones.counting import Hollow
    from v2edit.backbones.registry import BUILT_IN, Checkpoint, find, hollow, load, outline, weights_here

__all__ = [
    "BUILT_IN", "Backbone", "Checkpoint", "Hollow", "Outline", "Size", "Text", "find", "hollow", "load", "outline",
    "weights_here",
]  # fmt: skip

_HOMES = dict.fromkeys(("Backbone", "Outline", "Size", "Text"), "base") | {"Hollow": "counting"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'registry')}"), name)
