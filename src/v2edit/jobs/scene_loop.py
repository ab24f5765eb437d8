"""The loop of a scene edit from its snapshots to its results: reconstruct, edit by RER, write the run folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from v2edit.editing.config import ResolvedConfig
from v2edit.jobs.regions import describe_within
from v2edit.jobs.trainers import ChosenTrainer
from v2edit.prompts import PromptPair
from v2edit.runs import RunWriter
from v2edit.runs.layout import (
    AFTER_VIDEO,
    BEFORE_VIDEO,
    COMPARISON_VIDEO,
    CONTACT_SHEET,
    MASK_SHEET,
    SOURCE_SPLAT,
    SplatFormatName,
    subtask_video,
)
from v2edit.scenes.config import ResolvedFit

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from v2edit.editing.editor import Editor
    from v2edit.scenes.camera_paths import CameraPath
    from v2edit.scenes.dataset import Dataset
    from v2edit.scenes.optimise import FitProgress
    from v2edit.scenes.reading import Scene
    from v2edit.scenes.regions import Region
    from v2edit.scenes.representation import Representation
    from v2edit.scenes.rer import EditedScene, GaussianScene, SceneProgress
    from v2edit.scenes.trainers.trained import TrainedScene

log = logging.getLogger(__name__)
FPS = 8  # of the videos along a path
DIMMED = 0.2  # of its light: what may not change, in the picture of a mask
ProgressCallback = Callable[["SceneProgress"], None]


@dataclass(frozen=True)
class SceneLoop:
    """A scene edit with all that it takes: reconstruct, edit by RER, write the results."""

    folder: RunWriter
    scene: Scene
    path: CameraPath
    prompts: PromptPair
    config: ResolvedConfig
    fit: ResolvedFit
    region: Region | None
    editor: Editor
    format: SplatFormatName
    trainer: ChosenTrainer | None = None  # None: the built-in Gaussians
    spread: bool = False

    def run(self, on_progress: ProgressCallback | None) -> EditedScene[Representation]:
        """Go from where the run's snapshots stand to its results; return the edited scene."""
        from v2edit.scenes.rer import GaussianScene, edit_representation, video_cameras

        assert self.folder.request is not None
        report = on_progress or (lambda progress: None)
        source: Representation
        if self.trainer is None:
            source = self._reconstruct(report)
            gaussians = source.gaussians
            if self.region is not None and self.scene.gaussians is None:
                log.info("scene: %s", describe_within(self.region, gaussians))
        else:
            source, gaussians = self._train(self.trainer, report), None
        cameras = video_cameras(self.editor.backbone, self.path)
        seen = None if self.region is None else self.region.seen_from(gaussians, cameras)
        if seen is not None and isinstance(source, GaussianScene):
            source = replace(source, region=seen.region)  # as it was found in the source scene
        edited = edit_representation(
            self.editor, source, self.path, self.prompts, self.config, report,
            snapshots=self.folder.snapshots, seen=seen,
        )  # fmt: skip
        if seen is not None:
            self._write_mask(edited.source, seen.share)
        self._write(source, edited, self.folder.request.facts["instruction"] or self.prompts.target)
        return edited

    def _reconstruct(self, report: ProgressCallback) -> GaussianScene:
        """Return the source scene's Gaussians: those that it came as, or optimised from its images."""
        from v2edit.jobs.estimate import format_duration
        from v2edit.scenes.optimise import reconstruct
        from v2edit.scenes.rer import GaussianScene, fit_snapshot

        assert self.folder.request is not None
        device, snapshots = self.folder.request.facts["scene_device"], self.folder.snapshots
        if self.scene.gaussians is not None:
            gaussians = self.scene.gaussians.to(device)
        else:
            assert self.scene.dataset is not None

            def on_timed(seconds: float) -> None:
                log.info("the first reconstruction takes about %s", format_duration(seconds))

            snapshot = fit_snapshot(snapshots, 0)
            if snapshot.load() is None:  # compiling and timing are silent, for up to half a minute
                log.info("reconstructing: %s; some steps are timed first", self.fit)
            gaussians = reconstruct(
                self.scene.dataset, self.fit, _report_first(report), device, self.config.seed, snapshot, on_timed
            )
        splat, spread = self.scene.splat, self.spread
        return GaussianScene(gaussians, self.fit, self.region, snapshots, splat, self.format, spread)

    def _train(self, chosen: ChosenTrainer, report: ProgressCallback) -> TrainedScene:
        """Return the source scene as another program trains it: from its photographs, or a splat's renders along the
        path."""
        from v2edit.scenes.dataset import views_dataset
        from v2edit.scenes.rer import render_video
        from v2edit.scenes.trainers.trained import TrainedScene
        from v2edit.scenes.trainers.views import TrainingFrame

        assert self.folder.request is not None
        dataset, applied = self.scene.dataset, None
        if dataset is not None:
            dataset, applied = dataset.training, dataset.applied
        else:
            assert self.scene.gaussians is not None
            gaussians, cameras = self.scene.gaussians.to(self.folder.request.facts["scene_device"]), self.path.cameras
            dataset = replace(views_dataset(None, cameras), images=render_video(gaussians, cameras))
        frame = TrainingFrame.of(dataset.cameras)
        scene = TrainedScene(
            chosen.trainer, chosen.surroundings, self.folder.snapshots, self.fit, frame, applied, format=self.format
        )
        return scene.begin(dataset, self.config.seed, _report_first(report))

    def _write(self, source: Representation, edited: EditedScene[Representation], title: str) -> None:
        """Write everything in the run folder."""
        from v2edit import video as videos
        from v2edit.scenes.camera_paths import write_path
        from v2edit.scenes.dataset import views_dataset
        from v2edit.scenes.formats.nerfstudio import write_transforms

        folder, dataset, cameras = self.folder.folder, self.scene.dataset, self.path.cameras
        self._write_source(source)
        edited.scene.save(folder)
        write_path(folder / "camera_path.json", self.path, FPS, None if dataset is None else dataset.applied)
        before, after = source.render(cameras), edited.scene.render(cameras)
        videos.write(before, folder / BEFORE_VIDEO, fps=FPS)
        videos.write(after, folder / AFTER_VIDEO, fps=FPS)
        videos.write_compare(before, after, folder / COMPARISON_VIDEO, FPS)
        rows = {"before": before}
        for number, (video, render) in enumerate(zip(edited.videos, edited.renders, strict=True), start=1):
            videos.write(video, folder / subtask_video(number), fps=FPS)
            rows[f"subtask {number}, the video"] = video
            if number < len(edited.renders):  # the last one is the row "after"
                rows[f"subtask {number}, the scene"] = render
        videos.contact_sheet(rows | {f"after: {title}": after}, folder / CONTACT_SHEET)
        figures: dict[str, Any] = {"changes": [asdict(change) for change in edited.changes]}

        views = views_dataset(dataset, cameras)
        (folder / "dataset").mkdir()
        write_transforms(folder / "dataset", replace(views, images=edited.scene.render(views.cameras)))
        if dataset is not None and dataset.is_held_out.any():
            figures |= self._write_held_out(folder, dataset, source, edited.scene, title)
        if self.trainer is not None:
            figures["fits"] = self._read_fits(source)
        self.folder.write_manifest(figures | {"memory": self.editor.backbone.memory_mode})

    def _write_mask(self, frames: np.ndarray, share: np.ndarray) -> None:
        """Write what of the path's frames may change, by its `share` of each pixel, beside them."""
        from v2edit import video as videos

        light = DIMMED + (1 - DIMMED) * share[..., None]
        rows = {"the scene": frames, "what may change": (frames * light).round().astype(frames.dtype)}
        videos.contact_sheet(rows, self.folder.folder / MASK_SHEET)

    def _write_source(self, source: Representation) -> None:
        """Write the source scene as a splat, where it is one."""
        from v2edit.scenes.formats.splats import Splat, write_splat_file
        from v2edit.scenes.rer import GaussianScene

        splat = self.scene.splat
        if splat is None and isinstance(source, GaussianScene):
            splat = Splat(source.gaussians)
        if splat is not None:
            write_splat_file(self.folder.folder / SOURCE_SPLAT, splat)

    def _read_fits(self, source: Representation) -> list[dict[str, Any]]:
        """Return what each fit of another program took."""
        from v2edit.scenes.trainers.trained import TrainedScene

        assert isinstance(source, TrainedScene)
        return [replace(source, number=number).facts for number in range(self.config.subtasks + 1)]

    @staticmethod
    def _write_held_out(
        folder: Path, dataset: Dataset, source: Representation, edited: Representation, title: str
    ) -> dict[str, float]:
        """Write the held-out views of both scenes; return the PSNR of the reconstruction there."""
        from PIL import Image

        from v2edit import video as videos
        from v2edit.scenes.formats.nerfstudio import file_names
        from v2edit.scenes.measure import photograph_psnr

        held_out = dataset.held_out
        (folder / "held-out").mkdir()
        before, after = source.render(held_out.cameras), edited.render(held_out.cameras)
        for name, image in zip(file_names(held_out.names), after, strict=True):
            Image.fromarray(image).save(folder / "held-out" / f"{name}.png")
        sheet = {"photographs": held_out.images, "reconstructed": before, f"after: {title}": after}
        videos.contact_sheet(sheet, folder / "held-out.png")
        psnr = photograph_psnr(before, held_out)
        return {} if math.isnan(psnr) else {"reconstruction_psnr": psnr}


def _report_first(report: ProgressCallback) -> Callable[[FitProgress], None]:
    """Return the callback of the first reconstruction's steps."""
    from v2edit.scenes.rer import SceneProgress

    return lambda at: report(SceneProgress("reconstructing", at.step, at.steps, at.psnr))
