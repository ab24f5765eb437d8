"""Render, edit, reconstruct, and again with the next subtask (V2Edit Sec. 3.4).

The reconstruction between subtasks is what keeps the video one of a still, solid scene: what its frames do not agree
on, no scene shows. Letters: T frames of the path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from v2edit.backbones import Backbone, Size
from v2edit.editing import EditConfig, Editor, Progress
from v2edit.editing.editor import resize_clip
from v2edit.prompts import PromptPair
from v2edit.runs.snapshots import LoopSnapshot, Snapshots
from v2edit.scenes.camera_paths import CameraPath
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.config import FitConfig
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.masks import change_mask, composite, editable_mask, spawn
from v2edit.scenes.optimise import FitProgress, fit, quiet_torch
from v2edit.scenes.rasterise import render

log = logging.getLogger(__name__)
Rebuild = Callable[[int, np.ndarray], np.ndarray]  # a subtask's number and frames to those that the next starts from
LOOP = "fit"  # of a snapshots, with the number of the subtask
SEEN = 1.0  # of 255: an edit that changes the video by less, root mean square, cannot be seen
TAKEN = 0.5  # the share of an edit that a scene must take on
CELL = 8  # pixels: what is compared are means over cells this large, where noise is no change


@dataclass(frozen=True)
class SceneProgress:
    """One step of a scene edit: `step` of `steps` of a phase, counted from 1; `psnr` in dB while reconstructing."""

    phase: str
    step: int
    steps: int
    psnr: float | None = None


@dataclass(frozen=True)
class Change:
    """What a subtask changed. `edited`: the video, root mean square of 255. `taken`: the share of that which the scene
    shows after it, 1 when all; what the frames did not agree on is not taken, nor should it be."""

    edited: float
    taken: float


@dataclass(frozen=True)
class EditedScene:
    """The scene after the last subtask, and along the path, uint8 [T, H, W, 3] in the video's size: `source`, what was
    edited; `videos`, what the model made in each subtask; `renders`, what the scene shows after each."""

    gaussians: Gaussians
    source: np.ndarray
    videos: list[np.ndarray]
    renders: list[np.ndarray]
    changes: list[Change]


def edit_gaussians(
    editor: Editor,
    gaussians: Gaussians,
    path: CameraPath,
    prompts: PromptPair,
    config: EditConfig,
    fit_config: FitConfig,
    on_progress: Callable[[SceneProgress], None] = lambda progress: None,
    between: bool = True,
    snapshots: Snapshots | None = None,
) -> EditedScene:
    """Edits a scene along a camera path; logs a warning when a subtask did not reach it. Without reconstruction
    `between` the subtasks they are edits of a video, and the last one's is what the scene is reconstructed from. With a
    `snapshots`, an edit that was ended goes on where it stood when it is called again, and comes to the same."""

    def editing(at: Progress) -> None:
        on_progress(SceneProgress(f"subtask {at.subtask}/{at.subtasks}, editing", at.step, at.steps))

    # A closed path's video is a loop, where the model can make one.
    config = replace(config, loop=config.loop or (path.closed and editor.backbone.has_rotary_time))

    def make(source: np.ndarray, rebuild: Rebuild) -> list[np.ndarray]:
        return editor.edit(source, prompts, config, editing, rebuild if between else None, snapshots).subtasks

    settings = fit_config, config.subtasks, config.seed, config.loop
    return edit_filmed(make, editor.backbone, gaussians, path, *settings, on_progress, snapshots)


def edit_filmed(
    make: Callable[[np.ndarray, Rebuild], list[np.ndarray]],
    backbone: Backbone,
    gaussians: Gaussians,
    path: CameraPath,
    fit_config: FitConfig,
    subtasks: int = 1,
    seed: int = 0,
    loop: bool = False,
    on_progress: Callable[[SceneProgress], None] = lambda progress: None,
    snapshots: Snapshots | None = None,
) -> EditedScene:
    """The loop for whatever edits videos with a model: `make` is given what the path's cameras film of the scene, and a
    function that reconstructs the scene from a subtask's frames and films it again; it returns the frames after each
    subtask."""
    cameras = video_cameras(backbone, path)
    source = render_video(gaussians, cameras)
    scene, shown = gaussians, source
    renders: list[np.ndarray] = []
    changes: list[Change] = []

    def reconstruct(subtask: int, frames: np.ndarray) -> np.ndarray:
        nonlocal scene, shown
        what = f"subtask {subtask}/{subtasks}, reconstructing"

        def told(at: FitProgress) -> None:
            on_progress(SceneProgress(what, at.step, at.steps, at.psnr))

        # What the model's autoencoder cannot draw is no edit.
        drawn = autoencoded(backbone, shown, loop)
        share = change_mask(drawn, frames)
        start, target, free = refit_start(scene, path.cameras, frames, share, seed + subtask)
        snapshot = fit_snapshot(snapshots, subtask)
        scene = fit(start, target, fit_config.refit_steps, False, told, seed + subtask, free, snapshot)
        before, shown = shown, render_video(scene, cameras)
        changes.append(measured_change(drawn, frames, before, shown))
        warn_unless_changed(changes[-1], subtask)
        renders.append(shown)
        return shown

    videos = make(source, reconstruct)
    reconstruct(subtasks, videos[-1])
    return EditedScene(scene, source, videos, renders, changes)


def refit_start(
    scene: Gaussians, cameras: Cameras, frames: np.ndarray, share: torch.Tensor, random_seed: int
) -> tuple[Gaussians, Dataset, torch.Tensor]:
    """What a scene's next reconstruction starts from, is fitted to, and may change, bool [N]; `frames`, uint8
    [T, h, w, 3], are the edited ones, and `share` [T, h, w] what of them is taken."""
    kept = render_video(scene, cameras)
    wanted, share = composite(kept, frames, share)
    target = Dataset(cameras, wanted, tuple(f"{k:04d}" for k in range(len(frames))), np.zeros(len(frames), bool))
    free = editable_mask(scene, cameras, share)
    if added := spawn(scene, kept, target, share, torch.Generator().manual_seed(random_seed)):
        scene, free = scene.joined(added), torch.cat([free, free.new_ones(len(added))])
    return scene, target, free


def fit_snapshot(snapshots: Snapshots | None, subtask: int) -> LoopSnapshot:
    """Where the reconstruction after a subtask is kept; that of the scene as it was is the one after subtask 0."""
    return snapshots.loop(f"{LOOP}-{subtask}", every_step=False) if snapshots else LoopSnapshot()


def plan_of(config: FitConfig, subtasks: int, first: bool) -> dict[str, int]:
    """The steps of each reconstruction, by the name of its snapshot; `first`: that of the scene as it was, too."""
    steps = {f"{LOOP}-0": config.fit_steps} if first else {}
    return steps | {f"{LOOP}-{subtask}": config.refit_steps for subtask in range(1, subtasks + 1)}


def video_cameras(backbone: Backbone, path: CameraPath) -> Cameras:
    """The path's cameras with images of the model's size: the scene keeps its own."""
    cameras = path.cameras
    size = backbone.nearest_size(Size(len(cameras), cameras.height, cameras.width))
    return cameras.resized(size.height, size.width)


def autoencoded(backbone: Backbone, frames: np.ndarray, loop: bool = False) -> np.ndarray:
    """Frames as the model draws them unedited, in their own length and size."""
    own = Size(*frames.shape[:3])
    fitted = resize_clip(frames, backbone.nearest_size(own, loop), loop)
    return resize_clip(backbone.decode(backbone.encode(fitted, loop=loop), loop), own, loop)


@torch.no_grad()
def render_video(gaussians: Gaussians, cameras: Cameras) -> np.ndarray:
    """What cameras see, uint8 [T, H, W, 3]."""
    with quiet_torch():
        return np.stack([_picture(gaussians, cameras[[k]]) for k in range(len(cameras))])


def _picture(gaussians: Gaussians, camera: Cameras) -> np.ndarray:
    colours = render(gaussians, camera).colours[0]
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def measured_change(drawn: np.ndarray, edited: np.ndarray, before: np.ndarray, after: np.ndarray) -> Change:
    """How much an edit changed frames as the model draws them, and how much of that the scene `after` it shows and
    `before` did not, all uint8 [T, H, W, 3]."""
    asked, given = _cells(edited) - _cells(drawn), _cells(after) - _cells(before)
    energy = float((asked * asked).mean())
    return Change(energy**0.5, float((asked * given).mean()) / max(energy, 1e-9))


def warn_unless_changed(change: Change, subtask: int) -> None:
    """A scene that shows no edit is said to, and not passed off as one."""
    if change.edited < SEEN:
        log.warning(
            "subtask %d changed nothing that can be seen (%.2f of 255): try a higher --alpha or --guidance",
            subtask,
            change.edited,
        )
    elif change.taken < TAKEN:
        log.warning(
            "the scene took on %.0f%% of what subtask %d changed in the video: try more --refit-steps, or a path along "
            "which the views overlap more",
            100 * change.taken,
            subtask,
        )


def _cells(frames: np.ndarray) -> torch.Tensor:
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    cell = min(CELL, *video.shape[2:])
    return F.avg_pool2d(video, cell, ceil_mode=True, count_include_pad=False)
