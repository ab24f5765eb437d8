"""RER, render-edit-reconstruct: the editing of 3D scenes through video, subtask by subtask (V2Edit Sec. 3.4).

The reconstruction between two subtasks keeps the video that of a still, solid scene: what its frames do not agree on,
no scene can show. Letters: N Gaussians, T frames of the path, H and W the scene's image size, h and w the model's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.backbones import Backbone, Size
from v2edit.backbones.families import FRAME_RATE
from v2edit.editing import EditConfig, Editor, Progress
from v2edit.editing.local import LocalEdit
from v2edit.editing.resize import resize_clip
from v2edit.editing.sketch import SKETCHING
from v2edit.metrics.columns import CHANGE_FIGURES
from v2edit.prompts import PromptPair
from v2edit.runs.layout import EDITED_SPLAT, SplatFormatName
from v2edit.runs.snapshots import LoopSnapshot, Snapshots
from v2edit.scenes.camera_paths import CameraPath
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.config import FitConfig, ResolvedFit
from v2edit.scenes.consistency import Correspondence, match_neighbours, view_error
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.formats.splats import Splat, write_in_formats
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.masks import change_mask, composite, editable_mask, spawn
from v2edit.scenes.optimise import FitProgress, optimise_gaussians, single_thread
from v2edit.scenes.rasterise import render
from v2edit.scenes.regions import Region, SeenRegion
from v2edit.scenes.removal import remove_vanished
from v2edit.scenes.representation import EditedViews, Representation
from v2edit.scenes.spreading import spread_edit
from v2edit.video.composite import composite as composite_video

log = logging.getLogger(__name__)
Colour = tuple[float, float, float]  # red, green and blue, 0 to 1
BLACK: Colour = (0.0, 0.0, 0.0)
SceneT = TypeVar("SceneT", bound=Representation)
SceneT_co = TypeVar("SceneT_co", bound=Representation, covariant=True)
LOOP = "fit"  # prefix of a reconstruction's snapshot, before the number of the subtask
VISIBLE_CHANGE = 1.0  # of 255: an edit that changes the video by less, root mean square, cannot be seen
MIN_TRANSFER, MAX_TRANSFER = 0.5, 1.5  # the share of an edit that a scene must take on, and that is no more than it
NEXT_TO_NOTHING = 0.05  # the share that is called so
CELL = 8  # pixels: changes are compared as means over cells this large, which noise does not survive


@dataclass(frozen=True)
class SceneProgress:
    """Progress of a scene edit: `step` of `steps` of a phase, counted from 1; `psnr` in dB while reconstructing."""

    phase: str
    step: int
    steps: int
    psnr: float | None = None


@dataclass(frozen=True)
class Change:
    """The change of a subtask. `edited`: that of the video, root mean square of 255. `edit_transfer`: the share of it
    that the reconstructed scene shows, 1 when all; what the frames do not agree on is left out, as it should be.
    `view_error_video` and `view_error`: how far neighbouring frames disagree along the reconstructed scene's depth,
    before and after the reconstruction, in thousandths; None where no two frames show the same, or without depth."""

    edited: float
    edit_transfer: float
    view_error_video: float | None = None
    view_error: float | None = None

    def figures(self) -> dict[str, float]:
        """Return what tables show of it, by the names of their columns; nan where there is no figure."""
        values = {name: getattr(self, name) for name in CHANGE_FIGURES}
        return {name: math.nan if value is None else value for name, value in values.items()}


@dataclass(frozen=True)
class EditedScene(Generic[SceneT_co]):
    """The result of a scene edit: the `scene` and, along the path, uint8 videos [T, h, w, 3]: `source`, the render
    before the first subtask; `videos`, the edited video of each subtask; `renders`, the scene after each."""

    scene: SceneT_co
    source: np.ndarray
    videos: list[np.ndarray]
    renders: list[np.ndarray]
    changes: list[Change]


@dataclass(frozen=True)
class GaussianScene:
    """A scene as Gaussians, a `Representation`: fitted with the settings `fit_config`, in a `region` of it alone, if
    given, from where the run's `snapshots` stand; saved in a `format`, with what the file of its `splat` said.
    `spread`: whether what the path does not see changes with what it sees of the same thing."""

    gaussians: Gaussians
    fit_config: ResolvedFit
    region: Region | None = None
    snapshots: Snapshots | None = None
    splat: Splat | None = None
    format: SplatFormatName = "ply"
    spread: bool = False

    def fit(self, views: EditedViews, on_progress: Callable[[FitProgress], None]) -> GaussianScene:
        """Return the Gaussians that show the edited views; those that show nothing edited stay as they are."""
        start, target, editable = prepare_refit(
            self.gaussians, views.cameras, views.frames, views.mask, views.seed, self.region, self.spread
        )
        snapshot, steps = fit_snapshot(self.snapshots, views.subtask), self.fit_config.refit_steps
        fitted = optimise_gaussians(start, target, steps, views.seed, editable, on_progress, snapshot)
        return replace(self, gaussians=fitted)

    def render(self, cameras: Cameras) -> np.ndarray:
        """Render the Gaussians from each camera in turn, uint8 [T, H, W, 3]."""
        return render_video(self.gaussians, cameras)

    def match_neighbours(self, cameras: Cameras) -> Correspondence:
        """Return where the points that each camera sees lie in the next one's image, by the Gaussians' depth."""
        return match_neighbours(self.gaussians, cameras)

    def save(self, folder: Path) -> None:
        """Write the Gaussians as edited.ply, and in the `format`."""
        splat = self.splat or Splat(self.gaussians)
        write_in_formats(folder / EDITED_SPLAT, splat.edited(self.gaussians), self.format)


def edit_gaussians(
    editor: Editor,
    gaussians: Gaussians,
    path: CameraPath,
    prompts: PromptPair,
    config: EditConfig,
    fit_config: FitConfig,
    on_progress: Callable[[SceneProgress], None] = lambda progress: None,
    between: bool = True,
) -> EditedScene[GaussianScene]:
    """Edit Gaussians along a camera path; the other arguments are those of `edit_representation`."""
    scene = GaussianScene(gaussians, resolve_fit(fit_config, gaussians, path))
    return edit_representation(editor, scene, path, prompts, config, on_progress, between)


def edit_representation(
    editor: Editor,
    scene: SceneT,
    path: CameraPath,
    prompts: PromptPair,
    config: EditConfig,
    on_progress: Callable[[SceneProgress], None] = lambda progress: None,
    between: bool = True,
    snapshots: Snapshots | None = None,
    seen: SeenRegion | None = None,
) -> EditedScene[SceneT]:
    """Edit a scene along a camera path with V2Edit, in what is `seen` of a region of it or everywhere; warn when the
    scene did not take on a subtask's edit. Without reconstruction `between` the subtasks the video is edited in one go,
    and the scene reconstructed once. With `snapshots`, an edit that was interrupted resumes where it stopped when it is
    called again, and gives the same result. A closed path's video is a loop where the model can make one."""
    config = replace(config, loop=config.loop or (path.closed and editor.backbone.loop_obstacle is None))
    # Colours are left to drift: what is reconstructed is compared with what the autoencoder makes of the source.
    local = LocalEdit(None if seen is None else seen.share, keep_colours=False)
    options = prompts, config, partial(_report_edit, on_progress), snapshots, FRAME_RATE, local
    subtasks = config.for_prompts(prompts).subtasks
    edit = editor.begin(*options).next_subtask if between else lambda video: editor.edit(video, *options).frames
    return render_edit_reconstruct(
        lambda video: np.asarray(edit(video)),
        editor.backbone,
        scene,
        path,
        seed=config.seed,
        loop=config.loop,
        subtasks=range(1, subtasks + 1) if between else [subtasks],
        on_progress=on_progress,
        seen=seen,
    )


def render_edit_reconstruct(
    edit: Callable[[np.ndarray], np.ndarray],
    backbone: Backbone,
    scene: SceneT,
    path: CameraPath,
    *,
    seed: int = 0,
    loop: bool = False,
    subtasks: Sequence[int] = (1,),
    on_progress: Callable[[SceneProgress], None] = lambda progress: None,
    seen: SeenRegion | None = None,
) -> EditedScene[SceneT]:
    """RER, render-edit-reconstruct (V2Edit Sec. 3.4), with any video editor and any representation. `edit` takes a
    video of the scene, uint8 [T, h, w, 3] in the model's size, and returns it edited by one more subtask. `subtasks`:
    the numbers of those after which the scene is reconstructed; a method that edits in one go has one. `loop`: the
    video is a loop to the model's autoencoder. `seen`: what of the scene may change, and what of its video the edit
    did."""
    cameras = video_cameras(backbone, path)
    source = video = scene.render(cameras)
    result = EditedScene(scene, source, [], [], [])
    for subtask in subtasks:
        edited = edit(video)
        # What the model's autoencoder cannot reproduce is no part of the edit.
        unedited = autoencode(backbone, video, loop)
        if seen is not None:
            unedited = composite_video(source, unedited, seen.share)
        report = partial(_report_fit, on_progress, f"subtask {subtask}/{subtasks[-1]}, reconstructing")
        views = EditedViews(subtask, path.cameras, edited, change_mask(unedited, edited), seed + subtask)
        scene = scene.fit(views, report)
        before, video = video, scene.render(cameras)
        change = measure_change(unedited, edited, before, video)
        if (shared := scene.match_neighbours(cameras)) is not None:
            errors = view_error(edited, shared), view_error(video, shared)
            change = replace(change, view_error_video=errors[0], view_error=errors[1])
        warn_of_weak_edit(change, subtask)
        result.videos.append(edited)
        result.renders.append(video)
        result.changes.append(change)
    return replace(result, scene=scene)


def resolve_fit(config: FitConfig, scene: Gaussians, path: CameraPath) -> ResolvedFit:
    """Return the settings of the reconstructions of a scene from the images along a path."""
    size = path_size(path)
    return config.resolve(size.frames * size.height * size.width, scene.means.is_cuda)


def prepare_refit(
    scene: Gaussians,
    cameras: Cameras,
    edited: np.ndarray,
    mask: Tensor,
    seed: int,
    region: Region | None = None,
    spread: bool = False,
) -> tuple[Gaussians, Dataset, Tensor]:
    """Return what a scene is reconstructed from after an edit: the Gaussians to start from, the images to optimise them
    towards, and which of them may change, bool [N]: in a `region` of the scene alone, if given. `edited`: the video,
    uint8 [T, h, w, 3]. `mask` [T, h, w]: how much of each pixel is edited. `spread`: whether what the cameras do not
    see changes with what they see of the same thing, or as the optimisation leaves it."""
    unedited = render_video(scene, cameras)
    images, mask = composite(unedited, edited, mask)
    count = len(edited)
    target = Dataset(cameras, images, tuple(f"{k:04d}" for k in range(count)), np.zeros(count, bool))
    editable = editable_mask(scene, cameras, mask)
    if region is not None:
        editable &= region.contains(scene)
    left = remove_vanished(scene, target, mask, editable, seed)
    shown = unedited if left is scene else render_video(left, cameras)
    spawned = spawn(left, shown, target, mask, torch.Generator().manual_seed(seed))
    if region is not None:
        spawned = spawned and spawned.select(region.contains(spawned))
    if spread:
        allowed = torch.ones_like(editable) if region is None else region.contains(left)
        left, editable = spread_edit(left, cameras, (unedited, images), mask, editable, allowed)
    if spawned:
        left, editable = left.joined(spawned), torch.cat([editable, editable.new_ones(len(spawned))])
    return left, target, editable


def fit_snapshot(snapshots: Snapshots | None, subtask: int) -> LoopSnapshot:
    """Return the snapshot of the reconstruction after a subtask; subtask 0 is that of the unedited scene."""
    return snapshots.loop(f"{LOOP}-{subtask}", every_step=False) if snapshots else LoopSnapshot()


def fit_loop_steps(config: ResolvedFit, subtasks: int, first: bool) -> dict[str, int]:
    """Return the steps of each reconstruction by the name of its snapshot; `first`: that of the unedited scene, too."""
    steps = {f"{LOOP}-0": config.fit_steps} if first else {}
    return steps | {f"{LOOP}-{subtask}": config.refit_steps for subtask in range(1, subtasks + 1)}


def path_size(path: CameraPath) -> Size:
    """Return the size of the clip along a camera path."""
    return Size(len(path.cameras), path.cameras.height, path.cameras.width)


def video_cameras(backbone: Backbone, path: CameraPath) -> Cameras:
    """Return the path's cameras with images of the size that the model edits."""
    size = backbone.nearest_size(path_size(path))
    return path.cameras.resized(size.height, size.width)


def autoencode(backbone: Backbone, frames: np.ndarray, loop: bool = False) -> np.ndarray:
    """Return uint8 frames [T, H, W, 3] through the model's autoencoder, in their own length and size."""
    size = Size(*frames.shape[:3])
    resized = resize_clip(frames, backbone.nearest_size(size, loop), loop)
    return resize_clip(backbone.decode(backbone.encode(resized, loop=loop), loop), size, loop)


@torch.no_grad()
def render_video(gaussians: Gaussians, cameras: Cameras, background: Colour = BLACK) -> np.ndarray:
    """Render a scene from each camera in turn, uint8 [T, H, W, 3], before a background."""
    with single_thread():
        return np.stack([_render_frame(gaussians, cameras[[k]], background) for k in range(len(cameras))])


def _render_frame(gaussians: Gaussians, camera: Cameras, background: Colour) -> np.ndarray:
    colours = render(gaussians, camera, background=background).colours[0]
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def measure_change(unedited: np.ndarray, edited: np.ndarray, before: np.ndarray, after: np.ndarray) -> Change:
    """Measure how much an edit changed a video, and how much of that the scene shows `after` it and not `before`, all
    uint8 [T, H, W, 3]. `unedited` has passed through the model's autoencoder, as `edited` has."""
    in_video, in_scene = _cell_means(edited) - _cell_means(unedited), _cell_means(after) - _cell_means(before)
    energy = float((in_video * in_video).mean())
    return Change(energy**0.5, float((in_video * in_scene).mean()) / max(energy, 1e-9))


def warn_of_weak_edit(change: Change, subtask: int) -> None:
    """Warn where an edit cannot be seen in the video, or the scene did not change as the video did."""
    if change.edited < VISIBLE_CHANGE:
        log.warning(
            "subtask %d changed nothing that can be seen (%.2f of 255): try a higher --alpha or --guidance",
            subtask,
            change.edited,
        )
    elif sentence := describe_transfer(change.edit_transfer, subtask):
        log.warning("%s: try more --refit-steps, or a path along which the views overlap more", sentence)


def describe_transfer(share: float, subtask: int) -> str:
    """Describe the share of a subtask's change in the video that the scene shows; "" where it is as it should be. It is
    negative where the scene changed the other way, and above 1 where it changed more than the video."""
    what = f"what subtask {subtask} changed in the video"
    if share < -NEXT_TO_NOTHING:
        return f"the scene changed the opposite way to {what}"
    if share < NEXT_TO_NOTHING:
        return f"the scene took on next to nothing of {what}"
    if share < MIN_TRANSFER:
        return f"the scene took on only {100 * share:.0f}% of {what}"
    if share > MAX_TRANSFER:
        return f"the scene changed {share:.1f} times as much as the video did in subtask {subtask}"
    return ""


def _cell_means(frames: np.ndarray) -> Tensor:
    """Return the means of uint8 frames [T, H, W, 3] over square cells, float32 [T, 3, H / CELL, W / CELL]."""
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    cell = min(CELL, *video.shape[2:])
    return F.avg_pool2d(video, cell, ceil_mode=True, count_include_pad=False)


def _report_edit(on_progress: Callable[[SceneProgress], None], at: Progress) -> None:
    if at.stage != SKETCHING:
        on_progress(SceneProgress(f"subtask {at.subtask}/{at.subtasks}, {at.stage}", at.step, at.steps))


def _report_fit(on_progress: Callable[[SceneProgress], None], phase: str, at: FitProgress) -> None:
    on_progress(SceneProgress(phase, at.step, at.steps, at.psnr))
