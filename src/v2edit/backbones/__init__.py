"""The video models behind one protocol: `load` a model by hub id or folder, and edit with it."""

from v2edit.backbones.base import Backbone, Size, Text
from v2edit.backbones.registry import BUILT_IN, load

__all__ = ["BUILT_IN", "Backbone", "Size", "Text", "load"]
