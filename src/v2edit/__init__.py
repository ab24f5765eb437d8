"""V2Edit: training-free, instruction-guided video editing on existing video diffusion models.

The names below are loaded on first use: `import v2edit` costs nothing, torch comes with the first edit.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from v2edit.batch.command import run_batch
    from v2edit.editing.config import EditConfig
    from v2edit.editing.editor import Editor
    from v2edit.jobs.resume import resume_run
    from v2edit.jobs.scene import edit_scene
    from v2edit.jobs.video import edit_video
    from v2edit.prompts import PromptPair
    from v2edit.prompts.lvlm import LVLMConfig
    from v2edit.video import Video

    __version__: str

__all__ = [
    "EditConfig", "Editor", "LVLMConfig", "PromptPair", "Video", "__version__", "edit_scene", "edit_video",
    "resume_run", "run_batch",
]  # fmt: skip

_HOMES = {
    "edit_scene": "v2edit.jobs.scene",
    "edit_video": "v2edit.jobs.video",
    "run_batch": "v2edit.batch.command",
    "EditConfig": "v2edit.editing.config",
    "Editor": "v2edit.editing.editor",
    "LVLMConfig": "v2edit.prompts.lvlm",
    "PromptPair": "v2edit.prompts",
    "Video": "v2edit.video",
    "resume_run": "v2edit.jobs.resume",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("v2edit")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
