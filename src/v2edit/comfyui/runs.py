"""A node's edit: a run folder that its inputs name, made once, continued where it was interrupted, read where it is
done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from v2edit.batch.state import run_folder_state
from v2edit.comfyui.clips import fingerprint_array
from v2edit.comfyui.options import name_unknown
from v2edit.errors import UserError
from v2edit.jobs import functions
from v2edit.jobs.clip import FormatOptions
from v2edit.jobs.options import ModelOptions, job_from_keywords
from v2edit.jobs.preview import Preview, preview
from v2edit.jobs.scene import SceneEdit, SceneRun
from v2edit.jobs.video import EditRun, VideoEdit
from v2edit.prompts import PromptPair, write_prompts
from v2edit.runs import fingerprint_input
from v2edit.runs.layout import EDITED, EDITED_SPLAT
from v2edit.runs.naming import default_name, unique_path

if TYPE_CHECKING:
    from v2edit.backbones import LoadedModel

RUNS, SOURCES = "v2edit", "v2edit/sources"  # in ComfyUI's output folder
NAMED_BY = 8  # digits of the checksum in a run folder's name


@dataclass(eq=False)
class ModelHandle:
    """A model that is chosen, and loaded for the first edit; it stays in memory while ComfyUI keeps this object."""

    options: ModelOptions
    _loaded: LoadedModel | None = field(default=None, init=False)

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._loaded is not None

    def load(self) -> LoadedModel:
        """Return the model, whose weights are loaded at the first call. Raises `UserError` where they cannot be."""
        if self._loaded is None:
            from v2edit.backbones import LoadedModel

            checkpoint = self.options.find()
            self._loaded = LoadedModel(checkpoint, self.options.load(checkpoint))
        return self._loaded


def choose_model(**options: Any) -> ModelHandle:
    """Return a model by the keywords of `ModelOptions`. Raises `UserError` for an option or a value that there is
    not."""
    try:
        return ModelHandle(job_from_keywords(VideoEdit, video=Path("video"), **options).model_options)
    except TypeError as error:
        raise name_unknown(error) from error


@dataclass(frozen=True)
class NodePrompts:
    """The prompts of an edit on their way from node to node, and the instruction that they were made of."""

    pair: PromptPair
    instruction: str | None = None

    def keywords(self, folder: Path) -> dict[str, Any]:
        """Return them as the keywords of an edit. Intermediate prompts go through a file in `folder`."""
        if not self.pair.intermediate:
            return {"source_prompt": self.pair.source, "target_prompt": self.pair.target}
        digest = hashlib.sha256(repr(self).encode(errors="backslashreplace")).hexdigest()
        path = folder / f"prompts-{digest[:16]}.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_prompts(path, self.pair, self.instruction)
        return {"prompts": path}


def make_prompts(path: Path | None, instruction: str | None, model: ModelHandle, **options: Any) -> Preview:
    """Return the prompts of an edit and what they share: as they are given (`source_prompt`, `target_prompt`), or made
    of an instruction and the video at `path`. Raises `UserError` where one is missing."""
    source, target = options.get("source_prompt"), options.get("target_prompt")
    try:
        if path is not None:
            return functions.preview_edit(path, instruction, model_options=model.options, **options)
        if not source or not target:
            raise UserError("connect the video, or fill in both the source prompt and the target prompt")
        job = job_from_keywords(VideoEdit, video=Path("video"), model_options=model.options, **options)
    except TypeError as error:
        raise name_unknown(error) from error
    return preview(PromptPair(source, target), instruction, model.options.find(), job.config, model.options)


def describe_preview(found: Preview) -> str:
    """Describe what the prompts share, each with the next: removed and added words are marked."""
    return "\n".join(line for one in found.comparisons for line in (one.marked, one.summary))


@dataclass(frozen=True)
class NodeEdit:
    """An edit of a video or a scene, by the keywords of `v2edit.edit_video` or `v2edit.edit_scene`."""

    path: Path
    prompts: NodePrompts | None
    model: ModelHandle
    options: Mapping[str, Any]
    output: Path  # ComfyUI's output folder
    instruction: str | None = None  # where no prompts are given

    def edit_video(self, on_progress: Callable[[Any], None]) -> EditRun:
        """Edit a video, unless these inputs' edit is done; continue it where it was interrupted."""
        run = self._once(VideoEdit, functions.edit_video, on_progress)
        assert isinstance(run, EditRun)
        return run

    def edit_scene(self, on_progress: Callable[[Any], None]) -> SceneRun:
        """Edit a scene, as `edit_video` does."""
        run = self._once(SceneEdit, functions.edit_scene, on_progress)
        assert isinstance(run, SceneRun)
        return run

    def _once(
        self, job: type[VideoEdit | SceneEdit], edit: Callable[..., EditRun | SceneRun], report: Callable[[Any], None]
    ) -> EditRun | SceneRun:
        if not self.path.exists():
            raise UserError(f"there is no {self.path}")
        instruction = self.instruction if self.prompts is None else self.prompts.instruction
        keywords = dict(self.options)
        if self.prompts is not None:
            keywords |= self.prompts.keywords(self.output / SOURCES)
            instruction = None if "prompts" in keywords else instruction
        try:  # mistakes are told before the model is loaded
            first = "video" if job is VideoEdit else "scene"
            made = job_from_keywords(job, **{first: self.path}, **keywords, model_options=self.model.options)
        except TypeError as error:
            raise name_unknown(error) from error
        folder, state = self._folder(made, keywords)
        told = {"show_progress": False, "on_progress": report, "loaded": self.model.load()}
        if state != "absent":
            return functions.resume_run(folder, **told)
        return edit(self.path, instruction, out=folder, model_options=self.model.options, **keywords, **told)

    def _folder(self, job: VideoEdit | SceneEdit, keywords: Mapping[str, Any]) -> tuple[Path, str]:
        """Return the run folder that the inputs name, and its state. One whose result was removed is made anew, beside
        it."""
        title = (self.prompts.instruction or self.prompts.pair.target) if self.prompts else self.instruction or ""
        name = f"{default_name(self.path, title)}-{self.fingerprint(keywords)[:NAMED_BY]}"
        folder = Path(os.path.abspath(self.output / RUNS / name))
        state = run_folder_state(folder)
        result = job.format_options.path(folder / EDITED) if isinstance(job, VideoEdit) else folder / EDITED_SPLAT
        if state == "other" or (state == "done" and not result.exists()):
            return unique_path(folder), "absent"
        return folder, state

    def fingerprint(self, keywords: Mapping[str, Any]) -> str:
        """Return the SHA-256 of all that decides the result: the input's content, the prompts, the options."""
        from v2edit import __version__

        facts = {
            "version": __version__,
            "input": _fingerprint_path(self.path),
            "prompts": None if self.prompts is None else [self.prompts.pair, self.prompts.instruction],
            "instruction": self.instruction,
            "options": keywords,
            "model": asdict(self.model.options),
            "weights": fingerprint_files(self.model.options),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_to_text).encode()).hexdigest()


def fingerprint_files(options: ModelOptions) -> list[tuple[str, int, int]]:
    """Return path, size and time of the local files that a model is loaded from, beside its own folder."""
    paths = [Path(file.absolute) for file in options.weight_files if file.is_local]
    return [_describe_file(path) for path in paths if path.is_file()]


def fingerprint_scene(path: Path) -> list[tuple[str, int, int]]:
    """Return path, size and time of each file of a scene."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [_describe_file(file) for file in files if file.is_file()]


def _fingerprint_path(path: Path) -> Any:
    return fingerprint_scene(path) if path.is_dir() else fingerprint_input(path)["sha256"]


def _describe_file(path: Path) -> tuple[str, int, int]:
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns


def _to_text(value: Any) -> str:
    return fingerprint_array(value) if isinstance(value, np.ndarray) else str(value)


def edited_file(run: EditRun, options: Mapping[str, Any]) -> Path:
    """Return the edited video of a run, by the options that it was made with."""
    return FormatOptions(options.get("format", "mp4")).path(run.folder / EDITED)
