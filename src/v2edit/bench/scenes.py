"""The benchmark of scenes: what is rendered, edited and reconstructed, against the true edited scene.

Every method goes through the same loop (V2Edit Sec. 3.4) from the same reconstruction of the task's photographs; what
makes the video is what is compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from v2edit.backbones import Backbone
from v2edit.bench import variants
from v2edit.bench.methods import Autoencoded, Settings, Unedited
from v2edit.bench.tasks import Task, chosen, similarities
from v2edit.editing.editor import Editor
from v2edit.metrics.attributes import attributes
from v2edit.primitives import posed
from v2edit.primitives.edits import Edit, EditTruth
from v2edit.scenes.config import FitConfig
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.measure import compare
from v2edit.scenes.optimise import reconstruct
from v2edit.scenes.primitives import Task as Posed
from v2edit.scenes.primitives import sample_task
from v2edit.scenes.rer import SceneEdit, edit_filmed, edit_gaussians, render_video, video_cameras

if TYPE_CHECKING:
    from v2edit.metrics.attributes import Read
    from v2edit.metrics.clip_score import Clip

KINDS = ("recolour", "reshape", "insert", "remove", "floor", "sky")
COUNT, QUICK_COUNT = 3, 1
SUBTASKS = 2  # so that there is a progression to leave out, and a reconstruction between


@dataclass(frozen=True)
class SceneTask(Task):
    """One edit of a scene; `v2edit sample --scene --seed SEED --kind KIND` writes it."""

    fit: FitConfig
    """How it is reconstructed, from the photographs and from edited videos, whatever the method."""
    code: ClassVar[tuple[str, ...]] = (
        *Task.code, "scenes", "primitives/posed.py", "bench/scenes.py",
    )  # fmt: skip
    prepared: ClassVar[bool] = True

    @cached_property
    def edit(self) -> Edit:  # pyright: ignore[reportIncompatibleVariableOverride]
        return posed.sample_posed_edit(Random(self.seed), self.kind)

    @property
    def identity(self) -> str:
        return json.dumps([asdict(self.edit), asdict(self.fit), posed.VIEWS, posed.SIDE, posed.PATH])

    @property
    def clips(self) -> EditTruth:
        """The true scenes along the path, in the photographs' size."""
        return _clips(self)

    @property
    def posed(self) -> Posed:
        return _posed(self)

    def trial(self, settings: Settings, backbone: Backbone, given: Path | None) -> Callable[[], dict[str, np.ndarray]]:
        """A method, made ready to be timed. The call gives what the edited scene shows, `frames` along the path and
        `held_out` from the views that were kept out; `video`, what the method made, in the model's size; `taken`, the
        share of it that the scene took on; and of the unedited scene its Gaussians."""
        scenes = self.posed
        if isinstance(settings, Unedited):
            return self._unedited
        assert given is not None
        with np.load(given) as result:
            start = Gaussians(**{one.name: torch.from_numpy(result[one.name]) for one in fields(Gaussians)})
        if isinstance(settings, SceneV2Edit):
            config, editor = replace(settings, seed=self.seed), Editor(backbone)
            edit = partial(
                edit_gaussians, editor, start, scenes.path, self.prompts, config, self.fit, between=settings.between
            )
        else:
            cameras, method = video_cameras(backbone, scenes.path), settings.on(backbone)
            true = posed.posed_truth(self.edit, posed.path_of(self.edit, side=cameras.height), samples=2).target.frames

            def make(source: np.ndarray, rebuild: object) -> list[np.ndarray]:
                return [method(true if isinstance(settings, Autoencoded) else source, self.prompts, self.seed)]

            edit = partial(edit_filmed, make, backbone, start, scenes.path, self.fit, seed=self.seed)

        def run() -> dict[str, np.ndarray]:
            done: SceneEdit = edit()
            shown = self._shown(done.gaussians)
            return shown | {"video": done.videos[-1], "taken": np.float64(done.changes[-1].taken)}

        return run

    def figures(
        self, result: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray] | None, read: Read, clip: Clip | None
    ) -> dict[str, float]:
        frames, kept, true = result["frames"], self.posed.dataset.kept_out.images, self.posed.truth.kept_out.images
        held_out = compare(result["held_out"], kept, true)
        success, same = attributes(self.edit, read(frames))
        source = frames if given is None else given["frames"]
        found = {
            "psnr_held_out": held_out.whole,
            "held_out_inside": math.nan if held_out.inside is None else held_out.inside,
            "held_out_outside": math.nan if held_out.outside is None else held_out.outside,
            "success": success,
            "kept": same,
            "taken": float(result["taken"]) if "taken" in result else math.nan,
        }
        if clip is not None:
            found |= {"nearer": nearer(clip, frames, self.prompts.source, self.prompts.target)}
        return found | similarities(clip, self.prompts, source, frames)

    def _unedited(self) -> dict[str, np.ndarray]:
        scene = reconstruct(self.posed.dataset, self.fit, random_seed=self.seed)
        return {name: one.numpy() for name, one in scene.tensors().items()} | self._shown(scene)

    def _shown(self, scene: Gaussians) -> dict[str, np.ndarray]:
        cameras = self.posed.path.cameras, self.posed.dataset.kept_out.cameras
        return dict(zip(("frames", "held_out"), (render_video(scene, one) for one in cameras), strict=True))


@lru_cache(maxsize=2)
def _posed(task: SceneTask) -> Posed:
    return sample_task(task.seed, task.kind)


@lru_cache(maxsize=2)
def _clips(task: SceneTask) -> EditTruth:
    return posed.posed_truth(task.edit, posed.path_of(task.edit))


def nearer(clip: Clip, frames: np.ndarray, source_prompt: str, target_prompt: str) -> float:
    """The share of frames, uint8 [T, H, W, 3], that a CLIP finds more like the target prompt than like the source."""
    likeness = clip.images(frames) @ clip.texts([source_prompt, target_prompt]).T
    return float((likeness[:, 1] > likeness[:, 0]).float().mean())


def scenes(seeds: str, count: int, kinds: Sequence[str] = (), fit: FitConfig = FitConfig()) -> list[Task]:  # noqa: B008
    """The suite: `count` tasks of each kind, of those that show what a scene can be edited to, or of those named.

    Raises `UserError` for an unknown kind, or for more tasks than there are seeds.
    """
    return [SceneTask(kind, seed, fit) for kind, seed in chosen(seeds, count, kinds, KINDS)]


@dataclass(frozen=True)
class SceneV2Edit(variants.V2Edit):
    """The loop with V2Edit; as a method of frames, its editor alone."""

    between: bool = True
    """Reconstruct the scene after each subtask, not only after the last."""


def table_c(full: SceneV2Edit) -> dict[str, variants.V2Edit]:
    """The lower half of the paper's Table C, and what the loop is good for: without reconstruction between subtasks."""
    return {**variants.table_c(full), "w/o reconstruction": replace(full, between=False)}
