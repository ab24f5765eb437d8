"""Going on with a run: what `v2edit resume` and `v2edit.resume_run` both are."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, Suppress, arg

from v2edit.backbones.loading import LoadedModel
from v2edit.jobs.scene import SceneRun, finished_scene, resume_scene
from v2edit.jobs.video import EditRun, finished_edit, resume_edit
from v2edit.runs import RunWriter, read_run_state, remove_leftover_state


def resume_run(
    folder: Annotated[str | Path, Positional, arg(metavar="RUN")],
    *,
    on_progress: Annotated[Callable[[Any], None] | None, Suppress] = None,
    command: Annotated[Sequence[str] | None, Suppress] = None,
    loaded: Annotated[LoadedModel | None, Suppress] = None,
) -> EditRun | SceneRun:
    """Go on with a run that was interrupted, killed or out of disk, from where it stood.

    On the same machine the result is the same, to the byte, as if nothing had happened. A run that is done stays as it
    is. Prompts that a language model wrote are not asked for again.

    Args:
        folder: The run folder.
        on_progress: Called after every step, with what edit_video or edit_scene would tell.
        command: The command line to note in the manifest.
        loaded: The run's model, where it is in memory already and is to stay there.

    Raises:
        UserError: for what the user can mend, in one line.
    """
    folder = Path(folder)
    found = read_run_state(folder)
    if found.state == "done":
        remove_leftover_state(folder)
        return finished_scene(folder) if found.kind == "scene" else finished_edit(folder)
    run = RunWriter(folder, resume=True, command=command)
    return (resume_scene if found.kind == "scene" else resume_edit)(run, on_progress, loaded)
