"""Scenes in suites of files: every method in the render-edit-reconstruct loop, from the same reconstruction.

As in the suite of the built-in world's scenes (`scenes`), but that nobody knows the true edited scene.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from v2edit.backbones import Size
from v2edit.bench.file_tasks import FileTask
from v2edit.bench.methods import MethodConfig, Unedited, V2Edit
from v2edit.bench.tasks import Arrays
from v2edit.editing.editor import Editor
from v2edit.editing.resize import resize_clip
from v2edit.jobs.scene import FPS
from v2edit.metrics.columns import CHANGE_FIGURES
from v2edit.metrics.registry import EditedClip, Measures
from v2edit.runs import fingerprint_input
from v2edit.scenes.config import TRANSFORMS, FitConfig
from v2edit.scenes.formats.splats import read_splat
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.optimise import reconstruct
from v2edit.scenes.reading import Scene, choose_path, read_scene
from v2edit.scenes.rer import (
    EditedScene,
    GaussianScene,
    edit_gaussians,
    render_edit_reconstruct,
    render_video,
    resolve_fit,
)

if TYPE_CHECKING:
    from v2edit.backbones import Backbone
    from v2edit.scenes.camera_paths import CameraPath

SIDE = 128  # pixels of the longer side of the photographs and renders, as of v2edit scene on a CPU


@dataclass(frozen=True)
class FileScene(FileTask):
    """An edit of a scene from files: a dataset or a splat. Its renders along the path are measured against those of the
    unedited scene; `frames` is the number of cameras (default: as many as the model has frames)."""

    fit: FitConfig = FitConfig()
    code: ClassVar[tuple[str, ...]] = (*FileTask.code, "metrics/pixels.py", "scenes", "bench/file_scenes.py")
    has_start: ClassVar[bool] = True

    @property
    def source(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """None: the renders of the unedited scene are a result, of the reconstruction."""

    @property
    def truth(self) -> None:
        """None: nobody knows it."""

    @property
    def mask(self) -> None:
        """None: a scene's mask would be in 3D."""

    @property
    def fps(self) -> Fraction:
        return Fraction(FPS)

    @property
    def identity(self) -> str:
        prompts = None if self.line.pair is None else asdict(self.line.pair)
        return json.dumps([_checksum(self.line.path), prompts, self.frames, self.seed, asdict(self.fit), SIDE])

    def prepare(self, config: MethodConfig, backbone: Backbone, start: Path | None) -> Callable[[], Arrays]:
        """Return the call of a method on this scene, ready to be timed; it returns `frames`, renders along the path,
        and of an edit `video`, the method's output, and the figures of its last change, or of the unedited scene its
        Gaussians."""
        scene = _read(self.line.path)
        path = choose_path("auto", scene, self.frames or backbone.native_size.frames, SIDE)
        if isinstance(config, Unedited):
            return lambda: self._unedited(scene, path)
        assert start is not None
        with np.load(start) as result:
            gaussians = Gaussians.from_arrays(result)

        def run() -> Arrays:
            if isinstance(config, V2Edit) and not config.finds_mask:
                seeded, between = replace(config, seed=self.seed), getattr(config, "between", True)
                edited = edit_gaussians(
                    Editor(backbone), gaussians, path, self.prompts, seeded, self.fit, between=between
                )
            else:
                edited = self._edit_video(config, backbone, gaussians, path)
            figures = {name: np.float64(value) for name, value in edited.changes[-1].figures().items()}
            return {"frames": render_video(edited.scene.gaussians, path.cameras), "video": edited.videos[-1]} | figures

        return run

    def render(self, splat: Path, frames: int) -> np.ndarray:
        """Return renders of an edited scene, a splat in the scene's coordinates, along a path of so many cameras, uint8
        [T, H, W, 3]. Raises `UserError` for what is no splat."""
        path = choose_path("auto", _read(self.line.path), frames, SIDE)
        return render_video(read_splat(splat), path.cameras)

    def measure(self, result: Arrays, start: Arrays | None, measures: Measures) -> dict[str, float]:
        source = result["frames"] if start is None else start["frames"]
        pair = self.line.pair
        figures = measures.of(EditedClip(source, result["frames"], pair, self.instruction))
        if "video" in result and measures.clip is not None and pair is not None:
            unedited = resize_clip(source, Size(*result["video"].shape[:3]))
            before = measures.clip.score_edit(pair, unedited, result["video"])
            figures |= {f"{name}_video": value for name, value in before.items()}
        return figures | {name: float(result.get(name, math.nan)) for name in CHANGE_FIGURES}

    def _edit_video(
        self, config: MethodConfig, backbone: Backbone, gaussians: Gaussians, path: CameraPath
    ) -> EditedScene[GaussianScene]:
        method = config.build(backbone)

        def edit(video: np.ndarray) -> np.ndarray:
            return method(video, self.prompts, self.seed)

        scene = GaussianScene(gaussians, resolve_fit(self.fit, gaussians, path))
        return render_edit_reconstruct(edit, backbone, scene, path, seed=self.seed)

    def _unedited(self, scene: Scene, path: CameraPath) -> Arrays:
        gaussians = scene.gaussians
        if gaussians is None:
            assert scene.dataset is not None
            gaussians = reconstruct(scene.dataset, self.fit, seed=self.seed)
        return {**gaussians.arrays(), "frames": render_video(gaussians, path.cameras)}


@lru_cache(maxsize=1)
def _read(path: Path) -> Scene:
    return read_scene(path, SIDE)


@lru_cache(maxsize=64)
def _checksum(path: Path) -> str:
    """Return the checksum of a scene's own file and the names and sizes of the others beside it."""
    main = path / TRANSFORMS if (path / TRANSFORMS).is_file() else path
    own = fingerprint_input(main)["sha256"] if main.is_file() else ""
    sizes = [(str(file.relative_to(path)), file.stat().st_size) for file in sorted(path.rglob("*")) if file.is_file()]
    return json.dumps([own, sizes if path.is_dir() else []])
