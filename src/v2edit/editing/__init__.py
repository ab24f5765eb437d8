"""The method: three controls, the progression of subtasks, and the loop that runs them (V2Edit Sec. 3.2, 3.3).

`EditConfig` is plain data; what runs it comes with torch, on first use."""

from typing import TYPE_CHECKING, Any

from v2edit.editing.config import EditConfig

if TYPE_CHECKING:
    from v2edit.editing.editor import Editor, EditResult, Progress

__all__ = ["EditConfig", "EditResult", "Editor", "Progress"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from v2edit.editing import editor

    return getattr(editor, name)
