"""Continue a run that was stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.jobs.options import ModelOptions
from v2edit.jobs.scene import SceneEdit, SceneRun, read_scene_run
from v2edit.jobs.video import EditRun, VideoEdit, read_edit_run
from v2edit.runs import RunWriter, read_run_state, remove_leftover_state
from v2edit.runs.manifest import STATE_DIR, read_request

if TYPE_CHECKING:
    from v2edit.backbones import LoadedModel


def resume(
    folder: Path,
    on_progress: Callable[[Any], None] | None = None,
    loaded: LoadedModel | None = None,
    command: Sequence[str] | None = None,
) -> EditRun | SceneRun:
    """Continue the run in a folder from its last snapshot, or read it where it is done. The other arguments are those
    of `VideoEdit.run` and `SceneEdit.run`, and so are the errors."""
    run_state = read_run_state(folder)
    is_scene = run_state.kind == "scene"
    if run_state.state == "done":
        remove_leftover_state(folder)
        return read_scene_run(folder) if is_scene else read_edit_run(folder)
    run = RunWriter(folder, resume=True, command=command)
    return (SceneEdit if is_scene else VideoEdit).resume(run, on_progress, loaded)


def serve_run(folder: Path) -> None:
    """Compute a share of a run in a folder that another process continues, until it is done."""
    if read_run_state(folder).state != "done":
        ModelOptions.from_record(read_request(folder / STATE_DIR).facts).serve()
