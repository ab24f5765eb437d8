"""The benchmark of scenes: methods in the render-edit-reconstruct loop, measured against the true edited scene.

Every method runs in the same loop (RER, V2Edit Sec. 3.4) from the same reconstruction of the task's photographs; they
differ in how the video is edited.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np

from v2edit.backbones import Backbone, Size
from v2edit.bench import methods
from v2edit.bench.methods import Autoencoded, MethodConfig, Unedited
from v2edit.bench.tasks import Arrays, BenchTask, asked_of, select_seeds
from v2edit.editing.editor import Editor
from v2edit.editing.resize import resize_clip
from v2edit.metrics.attributes import attributes
from v2edit.metrics.columns import CHANGE_FIGURES
from v2edit.metrics.registry import EditedClip, Measures
from v2edit.primitives import posed
from v2edit.primitives.edits import Edit, EditTruth
from v2edit.scenes.config import FitConfig
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.measure import region_psnr
from v2edit.scenes.optimise import reconstruct
from v2edit.scenes.primitives import PosedTask, sample_task
from v2edit.scenes.rer import (
    EditedScene,
    GaussianScene,
    edit_gaussians,
    render_edit_reconstruct,
    render_video,
    resolve_fit,
    video_cameras,
)

# Minutes each; what is left out is much like one of them.
KINDS = ("recolour", "reshape", "insert", "remove", "floor", "sky", "wear", "air", "exchange", "multiply", "uncover")
COUNT, QUICK_COUNT = 3, 1
SUBTASKS = 2  # so that there is a progression to leave out, and a reconstruction between


@dataclass(frozen=True)
class SceneTask(BenchTask):
    """One edit of a scene; `v2edit sample --scene --seed SEED --kind KIND` writes it."""

    fit: FitConfig  # of all its reconstructions, from the photographs and from edited videos, whatever the method
    code: ClassVar[tuple[str, ...]] = (
        *BenchTask.code, "metrics/pixels.py", "scenes", "primitives/posed.py", "bench/scenes.py",
    )  # fmt: skip
    has_start: ClassVar[bool] = True

    @cached_property
    def edit(self) -> Edit:  # pyright: ignore[reportIncompatibleVariableOverride]
        return posed.sample_posed_edit(Random(self.seed), self.kind)

    @property
    def identity(self) -> str:
        fit = asdict(self.fit.resolve(0, on_gpu=False))  # of small images, whatever the quality's name
        del fit["quality"]
        return json.dumps([asdict(self.edit), fit, posed.VIEWS, posed.SIDE, posed.PATH], default=sorted)

    @property
    def clips(self) -> EditTruth:
        """The true scenes along the path, in the size of the built-in world's clips."""
        return _clips(self)

    @property
    def posed(self) -> PosedTask:
        return _posed(self)

    def prepare(self, config: MethodConfig, backbone: Backbone, start: Path | None) -> Callable[[], Arrays]:
        """Return the call of a method on this task, ready to be timed; it returns renderings of the edited scene,
        `frames` along the path and `held_out` from the held-out views; `video`, the method's output in the model's
        size; the figures of its last change; and the Gaussians of the unedited scene."""
        scenes = self.posed
        if isinstance(config, Unedited):
            return self._unedited
        assert start is not None
        with np.load(start) as result:
            gaussians = Gaussians.from_arrays(result)
        if isinstance(config, SceneV2Edit):
            seeded, editor = replace(config, seed=self.seed), Editor(backbone)
            edit = partial(
                edit_gaussians, editor, gaussians, scenes.path, self.prompts, seeded, self.fit, between=config.between
            )
        else:
            cameras, method = video_cameras(backbone, scenes.path), config.build(backbone)
            path = posed.path_of(self.edit, height=cameras.height, width=cameras.width)
            true = posed.posed_truth(self.edit, path, samples=2).target.frames

            def edit_video(video: np.ndarray) -> np.ndarray:
                return method(true if isinstance(config, Autoencoded) else video, self.prompts, self.seed)

            scene = GaussianScene(gaussians, resolve_fit(self.fit, gaussians, scenes.path))
            edit = partial(render_edit_reconstruct, edit_video, backbone, scene, scenes.path, seed=self.seed)

        def run() -> Arrays:
            edited: EditedScene[GaussianScene] = edit()
            figures = {name: np.float64(value) for name, value in edited.changes[-1].figures().items()}
            return self._render(edited.scene.gaussians) | {"video": edited.videos[-1]} | figures

        return run

    def measure(self, result: Arrays, start: Arrays | None, measures: Measures) -> dict[str, float]:
        assert measures.read is not None
        clip = measures.clip
        source, target = self.posed.dataset.held_out.images, self.posed.truth.held_out.images
        held_out, frames = region_psnr(result["held_out"], source, target), result["frames"]
        source = frames if start is None else start["frames"]
        figures = {
            "psnr_held_out": held_out.whole,
            "held_out_inside": held_out.inside,
            "held_out_outside": held_out.outside,
            **attributes(asked_of(self, measures.read), measures.read(frames)),
        }
        figures |= {name: float(result.get(name, math.nan)) for name in CHANGE_FIGURES}
        if clip is not None:
            figures |= {"clip_preference": clip.preference(self.prompts, frames)}
            figures |= clip.score_edit(self.prompts, source, frames)
            if "video" in result:  # before the reconstruction, as the upper half of Table B
                unedited = resize_clip(source, Size(*result["video"].shape[:3]))
                before = clip.score_edit(self.prompts, unedited, result["video"])
                figures |= {f"{name}_video": value for name, value in before.items()}
        edited = EditedClip(source, frames, self.prompts, self.instruction, self.clips.changed, self.truth)
        return measures.of(edited) | figures

    def _unedited(self) -> dict[str, np.ndarray]:
        scene = reconstruct(self.posed.dataset, self.fit, seed=self.seed)
        return scene.arrays() | self._render(scene)

    def _render(self, scene: Gaussians) -> dict[str, np.ndarray]:
        cameras = {"frames": self.posed.path.cameras, "held_out": self.posed.dataset.held_out.cameras}
        return {name: render_video(scene, views) for name, views in cameras.items()}


@lru_cache(maxsize=2)
def _posed(task: SceneTask) -> PosedTask:
    return sample_task(task.seed, task.kind)


@lru_cache(maxsize=2)
def _clips(task: SceneTask) -> EditTruth:
    return posed.posed_truth(task.edit, posed.path_of(task.edit))


def scene_tasks(seeds: str, count: int, kinds: Sequence[str] = (), fit: FitConfig = FitConfig()) -> list[BenchTask]:
    """Return the suite of scenes: `count` tasks of each of these kinds (default: `KINDS`). Raises `UserError` for an
    unknown kind, or for more tasks than there are seeds."""
    return [SceneTask(kind, seed, fit) for kind, seed in select_seeds(seeds, count, kinds, posed.POSED_KINDS, KINDS)]


@dataclass(frozen=True)
class SceneV2Edit(methods.V2Edit):
    """V2Edit in the render-edit-reconstruct loop; on frames alone, V2Edit."""

    between: bool = True  # reconstruct the scene after each subtask, not only after the last


def table_c(full: SceneV2Edit) -> dict[str, methods.V2Edit]:
    """Return the lower half of the paper's Table C, and V2Edit without reconstruction between the subtasks."""
    return {**methods.table_c(full), "w/o reconstruction": replace(full, between=False)}


def scene_variants(full: methods.V2Edit) -> dict[str, methods.V2Edit]:
    """Return the variants for a suite of clips and scenes of files: those on clips, and without reconstruction between
    the subtasks, which of clips is V2Edit itself."""
    return {**methods.clip_variants(full), "w/o reconstruction": SceneV2Edit(**vars(full), between=False)}
