"""The loop of a scene edit from its snapshots to its results: reconstruct, edit by RER, write the run folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from v2edit.editing.config import ResolvedConfig
from v2edit.jobs.regions import describe_within
from v2edit.prompts import PromptPair
from v2edit.runs import RunWriter
from v2edit.runs.layout import (
    AFTER_VIDEO,
    BEFORE_VIDEO,
    COMPARISON_VIDEO,
    CONTACT_SHEET,
    EDITED_SPLAT,
    SOURCE_SPLAT,
    SplatFormatName,
    subtask_video,
)
from v2edit.scenes.config import ResolvedFit

if TYPE_CHECKING:
    from pathlib import Path

    from v2edit.editing.editor import Editor
    from v2edit.scenes.camera_paths import CameraPath
    from v2edit.scenes.dataset import Dataset
    from v2edit.scenes.gaussians import Gaussians
    from v2edit.scenes.reading import Scene
    from v2edit.scenes.regions import Region
    from v2edit.scenes.rer import EditedScene, SceneProgress

log = logging.getLogger(__name__)
FPS = 8  # of the videos along a path
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

    def run(self, on_progress: ProgressCallback | None) -> EditedScene:
        """Go from where the run's snapshots stand to its results; return the edited scene."""
        from v2edit.scenes.rer import edit_gaussians

        assert self.folder.request is not None
        report = on_progress or (lambda progress: None)
        source, snapshots = self._reconstruct(report), self.folder.snapshots
        if self.region is not None and self.scene.gaussians is None:
            log.info("scene: %s", describe_within(self.region, source))
        options = self.prompts, self.config, self.fit, report
        edited = edit_gaussians(self.editor, source, self.path, *options, snapshots=snapshots, region=self.region)
        self._write(source, edited, self.folder.request.facts["instruction"] or self.prompts.target)
        return edited

    def _reconstruct(self, report: ProgressCallback) -> Gaussians:
        """Return the source scene's Gaussians: those that it came as, or optimised from its images."""
        from v2edit.jobs.estimate import format_duration
        from v2edit.scenes.optimise import reconstruct
        from v2edit.scenes.rer import SceneProgress, fit_snapshot

        assert self.folder.request is not None
        device = self.folder.request.facts["scene_device"]
        if self.scene.gaussians is not None:
            return self.scene.gaussians.to(device)
        assert self.scene.dataset is not None

        def on_step(at: Any) -> None:
            report(SceneProgress("reconstructing", at.step, at.steps, at.psnr))

        def on_timed(seconds: float) -> None:
            log.info("reconstructing: %s; about %s for the first", self.fit, format_duration(seconds))

        snapshot = fit_snapshot(self.folder.snapshots, 0)
        return reconstruct(self.scene.dataset, self.fit, on_step, device, self.config.seed, snapshot, on_timed)

    def _write(self, source: Gaussians, edited: EditedScene, title: str) -> None:
        """Write everything in the run folder."""
        from v2edit import video as videos
        from v2edit.scenes.camera_paths import write_path
        from v2edit.scenes.dataset import views_dataset
        from v2edit.scenes.formats.nerfstudio import write_transforms
        from v2edit.scenes.formats.splats import Splat, write_in_formats, write_splat_file
        from v2edit.scenes.rer import render_video

        folder, dataset, cameras = self.folder.folder, self.scene.dataset, self.path.cameras
        splat = self.scene.splat or Splat(source)
        write_splat_file(folder / SOURCE_SPLAT, splat)
        write_in_formats(folder / EDITED_SPLAT, splat.edited(edited.gaussians), self.format)
        write_path(folder / "camera_path.json", self.path, FPS, None if dataset is None else dataset.applied)
        before, after = render_video(source, cameras), render_video(edited.gaussians, cameras)
        videos.write(before, folder / BEFORE_VIDEO, fps=FPS)
        videos.write(after, folder / AFTER_VIDEO, fps=FPS)
        videos.write_compare(before, after, folder / COMPARISON_VIDEO, FPS)
        rows = {"before": before}
        for number, (video, render) in enumerate(zip(edited.videos, edited.renders, strict=True), start=1):
            videos.write(video, folder / subtask_video(number), fps=FPS)
            rows |= {f"subtask {number}, the video": video, f"subtask {number}, the scene": render}
        videos.contact_sheet(rows | {f"after: {title}": after}, folder / CONTACT_SHEET)
        figures: dict[str, Any] = {"changes": [asdict(change) for change in edited.changes]}

        views = views_dataset(dataset, cameras)
        (folder / "dataset").mkdir()
        write_transforms(folder / "dataset", replace(views, images=render_video(edited.gaussians, views.cameras)))
        if dataset is not None and dataset.is_held_out.any():
            figures |= self._write_held_out(folder, dataset, source, edited.gaussians, title)
        self.folder.write_manifest(figures | {"memory": self.editor.backbone.memory_mode})

    @staticmethod
    def _write_held_out(
        folder: Path, dataset: Dataset, source: Gaussians, edited: Gaussians, title: str
    ) -> dict[str, float]:
        """Write the held-out views of both scenes; return the PSNR of the reconstruction there."""
        from PIL import Image

        from v2edit import video as videos
        from v2edit.scenes.formats.nerfstudio import file_names
        from v2edit.scenes.measure import photograph_psnr
        from v2edit.scenes.rer import render_video

        held_out = dataset.held_out
        (folder / "held-out").mkdir()
        before, after = render_video(source, held_out.cameras), render_video(edited, held_out.cameras)
        for name, image in zip(file_names(held_out.names), after, strict=True):
            Image.fromarray(image).save(folder / "held-out" / f"{name}.png")
        sheet = {"photographs": held_out.images, "reconstructed": before, f"after: {title}": after}
        videos.contact_sheet(sheet, folder / "held-out.png")
        psnr = photograph_psnr(before, held_out)
        return {} if math.isnan(psnr) else {"reconstruction_psnr": psnr}
