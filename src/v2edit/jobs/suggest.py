"""Suggest editing tasks for videos and scenes, and write them as a suite."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from v2edit.errors import UserError
from v2edit.files import atomic_write
from v2edit.jobs.inputs import are_photographs, check_input, check_posed, is_scene
from v2edit.jobs.options import OUT, ModelOptions, expect_at_least, expect_new_file
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.prompts.suggest import KINDS

if TYPE_CHECKING:
    from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
SIDE = 512  # of the photographs of a scene that are shown


@dataclass(frozen=True)
class Suggest:
    """Let a vision model suggest editing tasks for videos and scenes, and write them as a suite for v2edit bench."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="VIDEO|SCENE", help_behavior_hint="")]
    """Videos, folders of their frames, or scenes with photographs and cameras."""
    out: Annotated[Path, arg(aliases=OUT, metavar="FILE")] = Path("suite.jsonl")
    """The suite to write, a task a line."""
    count: int = 6
    """Edits of each video or scene."""
    kinds: Annotated[tuple[str, ...], arg(metavar="KIND", help_behavior_hint="")] = ()
    """Kinds of edit, in turn (default: appearance, replacement, insertion, removal, background, style); also your
    own."""
    lvlm: Annotated[OmitArgPrefixes[LVLMConfig], arg(name="language-model")] = LVLMConfig()
    model_options: Annotated[OmitArgPrefixes[ModelOptions], arg(name="model")] = ModelOptions()

    def __post_init__(self) -> None:
        expect_at_least(1, count=self.count)

    def run(
        self, on_progress: Callable[[int, int, str], None] = lambda done, total, what: None
    ) -> list[dict[str, Any]]:
        """Write the suite and return its lines. What cannot be read, or of which nothing is suggested, is named and
        left out. Raises `UserError` where nothing is left, or no model is named."""
        if self.lvlm.model is None:
            raise UserError("which vision model is to suggest edits? Name it with --lvlm")
        if not self.inputs:
            raise UserError("edits of what? Give videos or scenes")
        if self.out.suffix.lower() != ".jsonl":
            raise UserError(f"{self.out} is no .jsonl: choose another -o")
        expect_new_file(self.out, "-o")
        for path in self.inputs:
            check_input(path, None, "scene" if os.path.exists(path) and is_scene(path) else "file")
        lines = self._ask(on_progress)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        atomic_write(self.out, text.encode())
        return lines

    def _ask(self, on_progress: Callable[[int, int, str], None]) -> list[dict[str, Any]]:
        from v2edit import backbones
        from v2edit.prompts.lvlm import open_chat
        from v2edit.prompts.style import read_style
        from v2edit.prompts.suggest import suggest_edits

        checkpoint = self.model_options.find()
        style, tokenizer = (
            read_style(self.lvlm.style or checkpoint.prompt_style),
            backbones.read_info(checkpoint).tokenizer,
        )
        kinds, lines, refused = self.kinds or tuple(KINDS), [], ""
        with open_chat(self.lvlm, "auto") as chat:
            for number, path in enumerate(self.inputs, start=1):
                try:
                    frames, field = _read_frames(path)
                    found = suggest_edits(chat, frames, style, tokenizer, self.count, kinds, self.lvlm.frames)
                except UserError as error:
                    log.warning("%s: %s", path, refused := str(error))
                    continue
                place = os.path.relpath(path, self.out.absolute().parent)
                lines += [one.line(place, field) for one in found]
                on_progress(number, len(self.inputs), f"{len(found)} edits of {path.name}")
        if not lines:
            raise UserError(f"no edit was suggested: {refused}")
        return lines


def _read_frames(path: Path) -> tuple[Frames, str]:
    """Return what a video or a scene shows, uint8 [T, H, W, 3], and the field of a suite that names it."""
    if not is_scene(path):
        from v2edit import video

        if path.is_dir() and are_photographs(path):
            check_posed(path)
        return video.read(path).frames, "video"
    from v2edit.scenes.reading import read_scene

    dataset = read_scene(path, SIDE).dataset
    if dataset is None:
        raise UserError("it is a splat, which has no photographs to look at")
    return dataset.training.images, "scene"
