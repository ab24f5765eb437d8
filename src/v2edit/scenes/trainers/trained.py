"""A scene that another program trains, as a `Representation`: fitted, rendered and exported by commands.

Letters: T frames of a path, H and W the scene's image size."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from v2edit.errors import UserError
from v2edit.runs.layout import EDITED_SPLAT, TRAINED, SplatFormatName
from v2edit.runs.snapshots import LoopSnapshot, LoopState, Snapshots
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.config import ResolvedFit
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.formats.splats import Splat, read_splat, write_in_formats
from v2edit.scenes.masks import composite
from v2edit.scenes.optimise import FitProgress
from v2edit.scenes.representation import EditedViews
from v2edit.scenes.trainers.base import CAMERAS, DATASET, FRAMES, MODEL, FitRequest, Trainer
from v2edit.scenes.trainers.process import Surroundings, Usage
from v2edit.scenes.trainers.views import TrainingFrame, read_frames, write_cameras, write_training

log = logging.getLogger(__name__)
FITS = "trainer"  # in the state folder: a folder for each fit
FIT_LOG, RENDER_LOG, EXPORT_LOG = "fit.log", "render.log", "export.log"
DRAWN = 16  # characters of the checksum of the cameras that renders are kept under


@dataclass(frozen=True)
class TrainedScene:
    """The scene after fit `number`: 0 is of the source, later ones are of edited views. Each has its folder, with its
    dataset, model, and frames rendered from it, which are not rendered again."""

    trainer: Trainer
    surroundings: Surroundings
    snapshots: Snapshots
    fit_config: ResolvedFit
    frame: TrainingFrame
    applied: np.ndarray | None
    number: int = 0
    format: SplatFormatName = "ply"

    @property
    def folder(self) -> Path:
        return self.snapshots.folder / FITS / f"fit-{self.number}"

    @property
    def snapshot(self) -> LoopSnapshot:
        """The record of the fit: whether it is done, and what it took."""
        return self.snapshots.loop(f"fit-{self.number}", every_step=False)

    @property
    def facts(self) -> dict[str, Any]:
        """What the fit and the renders of it took, in seconds and bytes of main memory at the peak."""
        saved = self.snapshot.load()
        return {} if saved is None else {name: fact for name, fact in saved.facts.items() if name != "done"}

    def begin(self, dataset: Dataset, seed: int, on_progress: Callable[[FitProgress], None]) -> TrainedScene:
        """Return the scene as it is trained from the views of a dataset, the first time."""
        self._train(dataset, None, self.fit_config.fit_steps, seed, on_progress)
        return self

    def fit(self, views: EditedViews, on_progress: Callable[[FitProgress], None]) -> TrainedScene:
        """Return the scene trained on the edited views; where they are not edited, on what it shows itself."""
        after = replace(self, number=views.subtask)
        images, _ = composite(self.render(views.cameras), views.frames, views.mask)
        count = len(images)
        names = tuple(f"{k:04d}" for k in range(count))
        target = Dataset(views.cameras, images, names, np.zeros(count, bool))
        warm, fit = self.trainer.starts_warm, self.fit_config
        steps = fit.refit_steps if warm else fit.fit_steps
        after._train(target, self.folder if warm else None, steps, views.seed, on_progress)
        return after

    def render(self, cameras: Cameras) -> np.ndarray:
        """Render the scene from each camera in turn, uint8 [T, H, W, 3]; from cameras that it was rendered from before,
        the frames are read. Raises `UserError`, in one line, where the trainer fails at it."""
        parts = [cameras.intrinsics, cameras.camera_to_world, np.array([cameras.height, cameras.width])]
        drawn = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:DRAWN]
        kept, name = self.folder / "renders" / drawn, self.trainer.name
        if (kept / FRAMES).is_dir():
            return read_frames(kept / FRAMES, cameras, name)
        working = kept.with_name(f".{drawn}.part")
        shutil.rmtree(working, ignore_errors=True)
        # nerfstudio finds no names for the files of a dataset with one image.
        asked = cameras if len(cameras) > 1 else cameras[[0, 0]]
        write_cameras(working / CAMERAS, asked, self.frame)
        (working / FRAMES).mkdir()
        command = self.trainer.render_command(self.folder, working / CAMERAS, working / FRAMES)
        usage = self._run(command, RENDER_LOG, lambda text: None)
        frames = read_frames(working / FRAMES, asked, name)
        shutil.rmtree(working / CAMERAS)
        working.rename(kept)
        self._note("rendering", usage)
        return frames[: len(cameras)]

    def match_neighbours(self, cameras: Cameras) -> None:
        """Return None: the depth of another program's scene is not known."""

    def save(self, folder: Path) -> None:
        """Write the trained model with the dataset it was last fitted to, the logs of all fits, and, where the trainer
        exports one, a splat in the scene's coordinates."""
        kept = folder / TRAINED
        kept.mkdir()
        for name in (DATASET, MODEL):
            shutil.copytree(self.folder / name, kept / name, copy_function=_link_or_copy, symlinks=True)
        for file in sorted(self.folder.parent.glob("fit-*/*.log")):
            shutil.copyfile(file, kept / f"{file.parent.name}-{file.name}")
        self.frame.write(kept, self.applied)
        if (splat := self._export()) is not None:
            write_in_formats(folder / EDITED_SPLAT, splat, self.format)

    def _train(
        self,
        dataset: Dataset,
        previous: Path | None,
        steps: int,
        seed: int,
        on_progress: Callable[[FitProgress], None],
    ) -> None:
        saved = self.snapshot.load()
        if saved is not None and saved.facts["done"]:
            return
        if saved is None or not self.trainer.continues:
            shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.folder / DATASET, ignore_errors=True)
        write_training(self.folder / DATASET, dataset, self.frame)
        (self.folder / MODEL).mkdir(exist_ok=True)
        request = FitRequest(self.folder, previous, steps, seed, self.number)
        self.snapshots.on_step(self.snapshot.name, steps)
        # From here on there is something to go on with, whatever becomes of the program.
        self.snapshot.save(LoopState({}, {"done": False}))
        seen = [0]

        def on_output(text: str) -> None:
            share = self.trainer.read_share(request, text)
            if share is not None and seen[0] < (step := round(min(share, 1.0) * steps)):
                seen[0] = step
                self.snapshots.on_step(self.snapshot.name, steps - step)
                on_progress(FitProgress(step, steps, None))

        command = self.trainer.fit_command(request)
        usage = self._run(command, FIT_LOG, on_output)
        if fault := self.trainer.find_fault(request):
            raise UserError(f"{command[0]} ended without an error and {fault} (all it said: {self.folder / FIT_LOG})")
        self.snapshots.on_step(self.snapshot.name, 0)
        facts = {"subtask": self.number, "steps": steps, "warm": previous is not None, "command": shlex.join(command)}
        self.snapshot.save(LoopState({}, {"done": True, **facts}))
        self._note("fitting", usage)
        log.info(
            "%s: fit %d took %.0f s and %.1f GiB", self.trainer.name, self.number, usage.seconds, usage.memory / 2**30
        )

    def _run(self, command: list[str], file: str, on_output: Callable[[str], None]) -> Usage:
        return self.surroundings.run(command, self.folder, self.folder / file, on_output)

    def _note(self, what: str, usage: Usage) -> None:
        """Add what a command took to the record of the fit."""
        saved = self.snapshot.load()
        assert saved is not None
        facts, seconds, memory = saved.facts, f"{what}_seconds", "peak_memory"
        facts[seconds] = round(facts.get(seconds, 0.0) + usage.seconds, 1)
        facts[memory] = max(facts.get(memory, 0), usage.memory)
        self.snapshot.save(LoopState({}, facts))

    def _export(self) -> Splat | None:
        """Return the splat that the trainer exports; None, with a warning where it should have been, without."""
        output = self.folder / "export"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        command = self.trainer.export_command(self.folder, output)
        if command is None:
            return None
        try:
            self._run(command, EXPORT_LOG, lambda text: None)
            files = sorted(output.rglob("*.ply"))
            if not files:
                raise UserError(f"{command[0]} wrote no .ply")
            return Splat(self.frame.restore(read_splat(files[0])))
        except UserError as error:
            log.warning("there is no splat of the edited scene: %s", error)
            return None


def describe_commands(trainer: Trainer, fit: ResolvedFit) -> str:
    """Describe what a trainer will be called with: its commands of the first fit, and the steps of the others."""
    request = FitRequest(Path("fit-0"), None, fit.fit_steps, 0, 0)
    first = shlex.join(trainer.fit_command(request))
    then = f"{fit.refit_steps:,} from there" if trainer.starts_warm else f"{fit.fit_steps:,} anew"
    return f"{trainer.name}: {first}; {fit.fit_steps:,} steps, then {then} after each subtask"


def _link_or_copy(source: str, target: str) -> None:
    """Link a file where the file system can, which takes no room, else copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
