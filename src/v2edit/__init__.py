"""V2Edit: training-free, instruction-guided video editing on existing video diffusion models.

The names below are loaded on first use: `import v2edit` costs nothing, torch comes with the first edit.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from v2edit.host import wait_passively

if TYPE_CHECKING:
    from v2edit.batch.command import run_batch
    from v2edit.editing.config import EditConfig
    from v2edit.editing.editor import Editor
    from v2edit.jobs.functions import edit_scene, edit_video, estimate_edit, estimate_scene, preview_edit, resume_run
    from v2edit.jobs.seeds import keep_seeds
    from v2edit.prompts import PromptPair
    from v2edit.prompts.lvlm import LVLMConfig
    from v2edit.scenes.config import FitConfig
    from v2edit.video import Video

    __version__: str

__all__ = [
    "EditConfig", "Editor", "FitConfig", "LVLMConfig", "PromptPair", "Video", "__version__", "edit_scene",
    "edit_video", "estimate_edit", "estimate_scene", "keep_seeds", "preview_edit", "resume_run", "run_batch",
]  # fmt: skip

_MODULES = {
    "EditConfig": "editing.config", "Editor": "editing.editor", "FitConfig": "scenes.config",
    "LVLMConfig": "prompts.lvlm", "PromptPair": "prompts", "Video": "video", "keep_seeds": "jobs.seeds",
    "run_batch": "batch.command",
}  # fmt: skip


wait_passively()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("v2edit")
    elif name in __all__:
        value = getattr(import_module(f"v2edit.{_MODULES.get(name, 'jobs.functions')}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
