"""The Python interface: one function for each job and verb, with the command line's options as keywords."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.errors import UserError
from v2edit.jobs.estimate import Estimate
from v2edit.jobs.options import as_path, job_from_keywords
from v2edit.jobs.preview import Preview
from v2edit.jobs.progress_bar import progress_bar
from v2edit.jobs.resume import resume
from v2edit.jobs.scene import SceneEdit, SceneRun
from v2edit.jobs.video import EditRun, VideoEdit

if TYPE_CHECKING:
    from v2edit.backbones import LoadedModel


def edit_video(
    video: str | Path,
    instruction: str | None = None,
    *,
    show_progress: bool = True,
    on_progress: Callable[[Any], None] | None = None,
    loaded: LoadedModel | None = None,
    **options: Any,
) -> EditRun:
    """Edit a video and write a run folder, as `v2edit edit` does.

    >>> import v2edit
    >>> run = v2edit.edit_video("surfer.mp4", "make the surfer a polar bear", model="zai-org/CogVideoX-5b",
    ...                         lvlm="qwen2.5vl:7b", lvlm_url="http://localhost:11434/v1", steps=30)
    >>> run.folder, run.prompts, run.edited.frames.shape

    Args:
        video: The video: a file, a folder of images, or an image.
        instruction: What to change, in one sentence.
        show_progress: Show a progress bar.
        on_progress: Called after every denoising step with a `Progress`.
        loaded: A model in memory, to use again: `LoadedModel(checkpoint, backbone)`.
        **options: Any option of `v2edit edit` by its name, with `_` for `-`:

            - where the prompts come from: source_prompt, target_prompt, prompts (a file), or lvlm (a model's name, or
              an `LVLMConfig`), lvlm_url, lvlm_frames, lvlm_timeout, lvlm_progression, prompt_style;
            - the model: model, device, dtype, offload, vae_tiling, revision, allow_pickle;
            - the edit: config (an `EditConfig`), or its fields: steps, strength, alpha, beta, subtasks, mixture,
              guidance, solver, loop, negative_prompt, seed, inc, pnc, amr ...;
            - what may change: mask and keep (a file or an array), box, time, grow, crop, colour;
            - the clip and what it is written as: start, end, fps; format, crf;
            - its shots, which of them are edited, and the frames a second of them: shots, only_shots, model_fps;
            - the run: out or output (the run folder), save_every, save_frames; seeds (so many edits in one folder).

    Returns:
        The finished run: `folder`, `edited` (a `Video`, whose `frames` are uint8 [T, H, W, 3]) and `prompts`.

    Raises `UserError` for a mistake in the options or the input, in one line, and `TypeError` for an unknown option.
    """
    job = job_from_keywords(VideoEdit, video=as_path(video), instruction=instruction, **options)
    with progress_bar(show_progress, on_progress) as report:
        return job.run(report, loaded)


def edit_scene(
    scene: str | Path,
    instruction: str | None = None,
    *,
    show_progress: bool = True,
    on_progress: Callable[[Any], None] | None = None,
    loaded: LoadedModel | None = None,
    **options: Any,
) -> SceneRun:
    """Edit a 3D scene and write a run folder, as `v2edit scene` does; arguments and errors are those of `edit_video`.

    Args:
        scene: The scene: a folder with transforms.json (nerfstudio) or a COLMAP project, or a splat.
        on_progress: Called after every step of reconstructing and editing with a `SceneProgress`.
        **options: Any option of `v2edit scene` by its name, with `_` for `-`: those of `edit_video` but save_frames,
            and path, frames, side, fit (a `FitConfig`) or its fields: quality, gaussians, fit_steps, refit_steps,
            degree, antialias; spread; another program that trains the scene: trainer, trainer_env, trainer_args,
            trainer_timeout.

    Returns the finished run: `folder`, `edited` (the scene's Gaussians; None where another program trained it and
    exports none) and `prompts`.
    """
    job = job_from_keywords(SceneEdit, scene=as_path(scene), instruction=instruction, **options)
    with progress_bar(show_progress, on_progress) as report:
        return job.run(report, loaded)


def preview_edit(
    video: str | Path, instruction: str | None = None, *, out: str | Path | None = None, **options: Any
) -> Preview:
    """Return the prompts of an edit, what they share, and what it costs; loads no weights of the video model.

    Takes the options of `edit_video`, and raises what it raises. `out` is a JSON file to save the prompts in, to edit
    by hand and to give to an edit as `prompts`; `UserError` where it exists.
    """
    if out is not None and Path(out).exists():
        raise UserError(f"{out} exists; choose another file or remove it")
    preview = job_from_keywords(VideoEdit, video=as_path(video), instruction=instruction, **options).preview()
    if out is not None:
        preview.save(Path(out))
    return preview


def estimate_edit(
    video: str | Path, instruction: str | None = None, *, timed: bool = False, **options: Any
) -> Estimate:
    """Estimate the time and memory of an edit, as `v2edit edit --dry-run` does; options are those of `edit_video`. With
    `timed`, a piece of each part is timed, which takes longer."""
    return job_from_keywords(VideoEdit, video=as_path(video), instruction=instruction, **options).estimate(timed)


def estimate_scene(
    scene: str | Path, instruction: str | None = None, *, timed: bool = False, **options: Any
) -> Estimate:
    """Estimate the time and memory of a scene edit, as `v2edit scene --dry-run` does, by `edit_scene`'s options."""
    return job_from_keywords(SceneEdit, scene=as_path(scene), instruction=instruction, **options).estimate(timed)


def resume_run(
    folder: str | Path,
    *,
    show_progress: bool = True,
    on_progress: Callable[[Any], None] | None = None,
    loaded: LoadedModel | None = None,
) -> EditRun | SceneRun:
    """Continue a run that was interrupted, killed or out of disk, as `v2edit resume` does.

    On the same machine the result is the same, to the byte, as if nothing had happened. A run that is done stays as it
    is; prompts that a language model wrote are not asked for again. `folder` is the run's, `show_progress` shows a bar,
    `on_progress` is called after every step, and `loaded` is the run's model, where it is in memory already. Raises
    `UserError` for a mistake in the input, in one line."""
    with progress_bar(show_progress, on_progress) as report:
        return resume(Path(folder), report, loaded)
