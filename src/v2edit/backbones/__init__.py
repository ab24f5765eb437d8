"""The video models behind one protocol: `load` a model by hub id or folder, and edit with it.

The names below are loaded on first use: those that need torch bring it then."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v2edit.backbones.base import Backbone, ModelInfo, Size, Text
    from v2edit.backbones.fake import FakeModel
    from v2edit.backbones.families import BUILT_IN
    from v2edit.backbones.hub import Checkpoint, find, has_weights
    from v2edit.backbones.loading import LoadedModel, load, load_fake_model, read_info
    from v2edit.backbones.options import LoadOptions

__all__ = [
    "BUILT_IN", "Backbone", "Checkpoint", "FakeModel", "LoadOptions", "LoadedModel", "ModelInfo", "Size", "Text",
    "find", "has_weights", "load", "load_fake_model", "read_info",
]  # fmt: skip

_HOMES = {
    **dict.fromkeys(("Backbone", "ModelInfo", "Size", "Text"), "base"),
    **dict.fromkeys(("Checkpoint", "find", "has_weights"), "hub"),
    "BUILT_IN": "families",
    "FakeModel": "fake",
    "LoadOptions": "options",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'loading')}"), name)
