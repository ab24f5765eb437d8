"""One edit of a 3D scene, from posed images or a splat to run folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from v2edit.editing.config import ResolvedConfig
from v2edit.errors import UserError
from v2edit.jobs.cameras import CameraOptions, read_or_find
from v2edit.jobs.job import EditJob, Prepared
from v2edit.jobs.options import expect_at_least
from v2edit.jobs.plan import find_foreign, log_plan
from v2edit.jobs.prompts import GivenPrompts, source_prompt_beside_scene
from v2edit.jobs.regions import RegionOptions, describe_region, load_region, save_region
from v2edit.jobs.scene_loop import FPS, ProgressCallback, SceneLoop
from v2edit.jobs.trainers import ChosenTrainer, TrainerOptions
from v2edit.jobs.video import load_recorded
from v2edit.prompts import PromptPair, read_prompts
from v2edit.runs import MANIFEST, Request, RunWriter, fingerprint_input
from v2edit.runs.layout import EDITED_SPLAT, TRAINED, SplatFormatName
from v2edit.scenes.config import PIXELS_PER_GAUSSIAN, FitConfig, ResolvedFit

if TYPE_CHECKING:
    import numpy as np
    import torch

    from v2edit.backbones import Backbone, LoadedModel, Size
    from v2edit.jobs.cameras import FoundCameras
    from v2edit.jobs.estimate import Estimate
    from v2edit.scenes.camera_paths import CameraPath
    from v2edit.scenes.gaussians import Gaussians
    from v2edit.scenes.reading import Scene
    from v2edit.scenes.regions import Region

log = logging.getLogger(__name__)
PROMPT_VIEWS = 9  # rendered of a scene without photographs, to write its prompts from
SIDE = {"cpu": 128, "cuda": 1024}  # default of --side


@dataclass(frozen=True)
class SceneRun:
    """A finished scene edit: its run folder, the edited scene's Gaussians (None where another program trained the scene
    and exports none), and the prompts that were used."""

    folder: Path
    edited: Gaussians | None
    prompts: PromptPair

    def __repr__(self) -> str:
        edited = "another program's model" if self.edited is None else f"{len(self.edited)} Gaussians"
        return f"SceneRun({str(self.folder)!r}, {edited})"


@dataclass(frozen=True)
class RenderOptions:
    """What of the scene is rendered for the edit."""

    path: Annotated[str, arg(metavar="PATH")] = "auto"
    """The camera path: views (the dataset's own), orbit, or a nerfstudio camera-path .json; auto takes the one in the
    dataset's camera_paths folder, else its views, else an orbit."""
    frames: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Cameras along the path (default: as many as the model has frames)."""
    side: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None
    """Longest side of the scene's images in pixels (default: 128 on a CPU, 1024 on a GPU)."""
    up: Literal["auto", "x", "y", "z", "-x", "-y", "-z"] = "auto"
    """The upward axis of an orbit, as z, or with an equals sign --up=-y (default: that of the views, else the one that
    the splat's file states, else by its ground)."""

    def __post_init__(self) -> None:
        expect_at_least(2, frames=self.frames)
        expect_at_least(1, side=self.side)


@dataclass(frozen=True)
class PreparedScene(Prepared):
    """All that a scene edit takes but the model's weights; `device` is the rasteriser's."""

    scene: Scene
    side: int
    device: torch.device
    fit: ResolvedFit
    region: Region | None
    found: FoundCameras | None  # of a scene that is photographs or a video
    trainer: ChosenTrainer | None  # None: the built-in Gaussians


@dataclass(frozen=True)
class SceneEdit(EditJob):
    """Edit a 3D scene so that it shows what an instruction or a target prompt says."""

    scene: Annotated[Positional[Path], arg(metavar="SCENE")]
    """The scene: a folder with transforms.json (nerfstudio) or a COLMAP project, a splat (.ply, .spz, .sog, …), or a
    folder of photographs or a video, whose cameras are found first."""
    instruction: Annotated[Positional[str | None], arg(metavar="INSTRUCTION", help_behavior_hint="")] = None  # pyright: ignore[reportIncompatibleMethodOverride]
    """What to change, in one sentence. A language model (--lvlm) turns it into prompts, or the grammar of the built-in
    world does."""
    render: Annotated[OmitArgPrefixes[RenderOptions], arg(name="rendering")] = RenderOptions()
    cameras: Annotated[OmitArgPrefixes[CameraOptions], arg(name="cameras")] = CameraOptions()
    fit: Annotated[OmitArgPrefixes[FitConfig], arg(name="reconstruction")] = FitConfig()
    trainer: Annotated[OmitArgPrefixes[TrainerOptions], arg(name="trainer")] = TrainerOptions()
    region: Annotated[OmitArgPrefixes[RegionOptions], arg(name="mask")] = RegionOptions()
    format: SplatFormatName = "ply"
    """What the edited scene's Gaussians are written as beside edited.ply."""
    spread: bool = False
    """Whether what the path does not see takes on the change of colour of what it sees of the same thing."""

    kind = "scene"

    @property
    def path(self) -> Path:
        return self.scene

    def source_prompt_beside(self) -> str | None:
        return source_prompt_beside_scene(self.scene)

    def prepare(
        self,
        given: GivenPrompts | None = None,
        loaded: LoadedModel | None = None,
        ask: bool = True,
        find_cameras: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> PreparedScene:
        """Read the scene, find the model and settle prompts and settings, as `VideoEdit.prepare` does. The cameras of
        photographs or a video are found where `find_cameras`; else stand-ins take their place, unless they are known
        already."""
        from v2edit.scenes.rasterise import rasteriser_device
        from v2edit.scenes.reading import choose_path

        given = given or self.given_prompts()
        device = rasteriser_device(self.model_options.device)
        side = self.render.side or SIDE[device.type]
        trainer = self._build_trainer(device)
        checkpoint = loaded.checkpoint if loaded else self.model_options.find()  # raises before cameras are looked for
        root = None if self.run_options.out is None else self.run_options.out.absolute().parent
        read = partial(read_or_find, self.scene, self.cameras, root, side)
        scene, found = read(False, on_progress)
        # Prompts that are to be written, which may fail, go before cameras, which take minutes.
        if find_cameras and given.pair is not None and found is not None and found.report is None:
            for limit in find_foreign(checkpoint.name, given.pair):
                log.warning("%s", limit)  # and again with the plan, minutes later
            scene, found = read(True, on_progress, found.source)
        region = self.region.build(scene)
        choose_path(self.render.path, scene, PROMPT_VIEWS, side, self.render.up)  # raises before a model is asked
        settled = self.settle(given, checkpoint, lambda: self._prompt_views(scene, side, device), ask, loaded)
        if find_cameras and found is not None and found.report is None:
            scene, found = read(True, on_progress, found.source)
            region = self.region.build(scene)
        fit = self.fit.resolve(_count_pixels(scene), device.type == "cuda", trainer is not None)
        return PreparedScene(
            **vars(settled),
            scene=scene, side=side, device=device, fit=fit, region=region, found=found, trainer=trainer,
        )  # fmt: skip

    def estimate(self, timed: bool = False) -> Estimate:
        """Estimate the time and memory of the edit (a dry run), as `VideoEdit.estimate` does; where it is `timed`, some
        steps of the reconstructions are, too, which are not counted. Raises `UserError` for what would stop the
        edit, in one line."""
        from v2edit.backbones import Size
        from v2edit.jobs.estimate import Stopwatch, estimate_edit, time_reconstruction
        from v2edit.jobs.memory import load_fake_model
        from v2edit.jobs.time_beside import time_writing
        from v2edit.scenes.rer import path_size

        stopwatch, given = Stopwatch(), self.given_prompts()
        self.check_out()
        prepared, options = self.prepare(given, ask=False), self.model_options
        with stopwatch.paused():
            fake = load_fake_model(prepared.checkpoint, options)
        path, prepared = self._choose_path(prepared, fake.backbone)
        found = prepared.found
        is_known = found is None or found.report is not None  # else the path's cameras are stand-ins
        limits = describe_region(prepared.region, prepared.scene, path.cameras) if is_known else {}
        config = prepared.for_clip(fake.backbone, path_size(path)).config
        finding, remarks = {}, []
        if found is not None and not is_known:
            with stopwatch.paused():
                finding, remark = found.remark(timed)
            remarks = [remark]
        if not timed or prepared.trainer is not None:
            estimate = estimate_edit(stopwatch, prepared, path_size(path), options)
            without = f"without the reconstructions, {self._describe_fits(prepared)}"
            besides = "the reconstructions" if is_known else "finding the cameras, and the reconstructions"
            remarks = [*estimate.remarks, *remarks, without]
            return replace(estimate, remarks=remarks, limits=limits, besides=besides)
        with stopwatch.paused():
            renders = time_reconstruction(prepared.scene, path, prepared.fit, fake, config, prepared.device)
            writing = time_writing(renders.frames, FPS, config.subtasks)
        estimate = estimate_edit(stopwatch, prepared, Size(*renders.frames.shape[:3]), options, renders.frames)
        seconds = {"reconstructing": renders.seconds, "writing": writing}
        if estimate.is_timed:  # each subtask's video is encoded anew, and decoded to compare with
            seconds["encoding"] = estimate.seconds["encoding"] * 2 * config.subtasks
            seconds["decoding"] = estimate.seconds["decoding"] * 2
        remarks = [*estimate.remarks, *remarks]
        return replace(estimate, seconds=finding | estimate.seconds | seconds, limits=limits, remarks=remarks)

    def run(
        self,
        on_progress: ProgressCallback | None = None,
        loaded: LoadedModel | None = None,
        command: Sequence[str] | None = None,
    ) -> SceneRun:
        """Edit the scene and write the run folder; the arguments and errors are those of `VideoEdit.run`."""
        given = self.given_prompts()
        with RunWriter(self.run_options.folder(self.scene, given.title)) as run:
            from v2edit.editing.cost import loop_steps
            from v2edit.editing.editor import Editor
            from v2edit.scenes.reading import choose_path, fingerprint, name_path
            from v2edit.scenes.rer import fit_loop_steps, path_size

            prepared = self.prepare(given, loaded, find_cameras=True, on_progress=on_progress)
            scene = prepared.scene

            def clip_of(model: Backbone) -> tuple[ResolvedConfig, Size]:
                path, looped = self._choose_path(prepared, model)
                return looped.for_clip(model, path_size(path)).config, path_size(path)

            backbone = self.load(prepared, clip_of, loaded)
            frames = self.render.frames or backbone.native_size.frames
            path = choose_path(self.render.path, scene, frames, prepared.side, self.render.up)
            log.info("path: %s", name_path(self.render.path, scene))
            prepared = replace(prepared, region=self.region.on_path(prepared.region, scene, path.cameras))
            for name, text in describe_region(prepared.region, scene, path.cameras).items():
                log.info("%s: %s", name, text)
            prepared = prepared.for_clip(backbone, path_size(path))
            config = prepared.config
            log_plan(prepared.prompts, config, path_size(path), backbone)
            identity = fingerprint_input(scene.path) | {"read": fingerprint(scene, path)}
            record = self.record(prepared, backbone, path_size(path), identity) | {
                "fit": prepared.fit,
                "trainer": prepared.trainer and prepared.trainer.facts,
                "path": {
                    "what": os.path.abspath(self.render.path) if Path(self.render.path).is_file() else self.render.path,
                    "frames": len(path.cameras),
                    "up": self.render.up,
                    "closed": path.closed,
                },
                **({} if prepared.found is None else {"cameras": prepared.found.facts}),
                "local": self.region.facts,
                "output": {"format": self.format},
                "spread": self.spread,
                "side": prepared.side,
                "scene_device": str(prepared.device),
            }
            steps = loop_steps(backbone.schedule(config.steps), config)
            is_fitted_first = scene.gaussians is None or prepared.trainer is not None
            steps |= fit_loop_steps(prepared.fit, config.subtasks, is_fitted_first)
            request = Request("scene", record, steps, self.run_options.save_every, command)
            run.begin(request, partial(save_region, prepared.region))
            if prepared.trainer is not None:
                log.info("trainer: %s", self._describe_fits(prepared))
            options = prepared.fit, prepared.region, Editor(backbone, single_use=loaded is None), self.format
            SceneLoop(run, scene, path, prepared.prompts, config, *options, prepared.trainer, self.spread).run(
                on_progress
            )
        return read_scene_run(run.out)

    @staticmethod
    def resume(
        run: RunWriter, on_progress: ProgressCallback | None = None, loaded: LoadedModel | None = None
    ) -> SceneRun:
        """Continue a scene edit that was stopped, from its last snapshot; the result is the same as if it had not been.

        Raises `UserError` where the scene or its path is gone or has changed, or the model or device is not available.
        """
        assert run.request is not None and run.request.kind == "scene"
        with run:
            from v2edit.editing.editor import Editor
            from v2edit.scenes.rasterise import rasteriser_device
            from v2edit.scenes.reading import choose_path, is_unchanged, read_scene
            from v2edit.scenes.rer import path_size

            record = run.request.facts
            where, recorded_path = Path(record["input"]["path"]), record["path"]
            prompts, config = PromptPair(**record["prompts"]), ResolvedConfig(**record["config"])
            scene = read_scene(where, record["side"])
            up = recorded_path.get("up", "auto")  # runs that began before there was a choice
            path = choose_path(recorded_path["what"], scene, recorded_path["frames"], record["side"], up)
            if not is_unchanged(scene, path, record["input"]["read"]):
                raise UserError(f"{where}, or the path, is not what it was when the run began; put that back")
            rasteriser_device(record["scene_device"], required=True)
            backbone = load_recorded(record, loaded)
            log_plan(prompts, config, path_size(path), backbone)
            fit = ResolvedFit(**record["fit"])
            editor = Editor(backbone, single_use=loaded is None)
            region = load_region(run.snapshots.folder, record.get("local", {}))
            written_as = record.get("output", {}).get("format", "ply")  # runs that began before there was a choice
            trainer = TrainerOptions.rebuild(record.get("trainer"))
            options = region, editor, written_as, trainer, record.get("spread", False)
            SceneLoop(run, scene, path, prompts, config, fit, *options).run(on_progress)
        return read_scene_run(run.out)

    def _build_trainer(self, device: torch.device) -> ChosenTrainer | None:
        """Return the trainer, where that is another program. Raises `UserError` for one that cannot be had, or options
        that it does not take."""
        trainer = self.trainer.build(device.type == "cpu")
        if trainer is None:
            return None
        given = {"--gaussians": self.fit.gaussians, "--degree": self.fit.degree, "--mask": self.region.mask}
        given |= {"--spread": self.spread or None}
        given["--antialias"] = self.fit.antialias or None
        for name in (name for name, value in given.items() if value is not None):
            raise UserError(f"{name} takes the built-in Gaussians, which --trainer {trainer.trainer.name} replaces")
        if self.format != "ply" and trainer.trainer.export_command(Path(), Path()) is None:
            raise UserError(f"--format {self.format} is of a splat, and {trainer.trainer.name} exports none")
        return trainer

    @staticmethod
    def _describe_fits(prepared: PreparedScene) -> str:
        """Describe the reconstructions that an estimate leaves out."""
        if prepared.trainer is None:
            return f"which --timed times: {prepared.fit} on {prepared.device}"
        from v2edit.scenes.trainers.trained import describe_commands

        return describe_commands(prepared.trainer.trainer, prepared.fit)

    def _choose_path(self, prepared: PreparedScene, backbone: Backbone) -> tuple[CameraPath, PreparedScene]:
        """Return the camera path for a model, and what the edit takes with the path's loop settled."""
        from v2edit.scenes.reading import choose_path

        frames = self.render.frames or backbone.native_size.frames
        path = choose_path(self.render.path, prepared.scene, frames, prepared.side, self.render.up)
        prepared = replace(prepared, region=self.region.on_path(prepared.region, prepared.scene, path.cameras))
        is_loop = prepared.config.loop or (path.closed and backbone.loop_obstacle is None)
        return path, replace(prepared, open_config=replace(prepared.open_config, loop=is_loop))

    def _prompt_views(self, scene: Scene, side: int, device: torch.device) -> np.ndarray:
        """Return what the prompts are written from, uint8 [T, H, W, 3]: the photographs, or renders along the path."""
        if scene.dataset is not None:
            return scene.dataset.training.images
        from v2edit.scenes.reading import choose_path
        from v2edit.scenes.rer import render_video

        assert scene.gaussians is not None
        path = choose_path(self.render.path, scene, PROMPT_VIEWS, side, self.render.up)
        return render_video(scene.gaussians.to(device), path.cameras)


def _count_pixels(scene: Scene) -> int:
    """Return the pixels of the images that a scene is reconstructed from; for a splat, of those that it stands for."""
    if scene.dataset is not None:
        return scene.dataset.training.images[..., 0].size
    assert scene.gaussians is not None
    return PIXELS_PER_GAUSSIAN * len(scene.gaussians)


def read_scene_run(folder: Path) -> SceneRun:
    """Read a finished scene edit."""
    from v2edit.scenes.formats.splats import read_splat

    prompts, _ = read_prompts(folder / MANIFEST)
    splat = folder / EDITED_SPLAT
    edited = None if not splat.exists() and (folder / TRAINED).is_dir() else read_splat(splat)
    return SceneRun(folder, edited, prompts)
