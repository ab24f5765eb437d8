"""Tasks of suites from files: edits of anyone's clips, whose true results are mostly not known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from v2edit.bench.methods import Autoencoded, MethodConfig, Unedited, V2Edit
from v2edit.bench.suite_files import SuiteLine
from v2edit.bench.tasks import Arrays
from v2edit.errors import UserError
from v2edit.metrics.registry import EditedClip, Measures
from v2edit.prompts import PromptPair
from v2edit.runs import fingerprint_input
from v2edit.video.stream import Frames, map_frames

if TYPE_CHECKING:
    from v2edit.backbones import Backbone
    from v2edit.video import Video

QUICK_COUNT = 3


@dataclass(frozen=True)
class FileTask:
    """An edit of a clip from a file, of its first `frames` frames where that is a number."""

    line: SuiteLine
    frames: int | None = None
    code: ClassVar[tuple[str, ...]] = (
        "attention", "backbones", "editing", "prompts", "sampling.py", "bench/baselines.py", "bench/methods.py",
    )  # fmt: skip
    has_start: ClassVar[bool] = False
    is_long: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        return self.line.kind

    @property
    def name(self) -> str:
        return self.line.name

    @property
    def seed(self) -> int:
        return self.line.seed

    @property
    def instruction(self) -> str:
        return self.line.instruction

    @property
    def prompts(self) -> PromptPair:
        """The prompts. Raises `UserError` for a task that has an instruction alone."""
        if self.line.pair is None:
            raise UserError(f"{self.name} has an instruction and no prompts")
        return self.line.pair

    @property
    def identity(self) -> str:
        """All that an edit depends on: the clip by its content, the prompts, and what part is taken. What a result is
        measured with may change without edits being made anew."""
        prompts = None if self.line.pair is None else asdict(self.line.pair)
        return json.dumps([_checksum(self.line.path), prompts, self.frames, self.seed])

    @property
    def measured_with(self) -> str:
        """What results are compared with, by content, and what tables and films say."""
        files = [path and _checksum(path) for path in (self.line.mask, self.line.target)]
        return json.dumps([self.name, self.kind, self.instruction, *files])

    @property
    def clip(self) -> Video:
        """The clip, read and cached."""
        return _read(self)

    @property
    def source(self) -> Frames:
        return self.clip.frames

    @property
    def fps(self) -> Fraction:
        return self.clip.fps

    @property
    def truth(self) -> Frames | None:
        """The true edited video, fitted to the source's size and length, where there is one."""
        if self.line.target is None:
            return None
        from v2edit import video
        from v2edit.bench.fitting import fit_clip

        return fit_clip(video.read(self.line.target), self.clip)[0]

    @property
    def mask(self) -> Frames | None:
        """What the edit may change, bool [T, H, W], where the suite says so."""
        if self.line.mask is None:
            return None
        from v2edit.video.masks import read_mask

        return map_frames(lambda _, share: share > 0, [read_mask(self.line.mask, self.clip)], dtype=bool)

    def prepare(self, config: MethodConfig, backbone: Backbone, start: Path | None) -> Callable[[], Arrays]:
        """Return the call of a method on this clip, ready to be timed, which returns `frames`, the edited clip."""
        method, source = config.build(backbone), self.source
        takes_streams = isinstance(config, (Unedited, V2Edit))
        frames: Any = source if takes_streams else np.asarray(source)
        if self.line.pair is None and isinstance(config, (Unedited, Autoencoded)):
            prompts = PromptPair(self.instruction, self.instruction)  # which they do not read
        else:
            prompts = self.prompts

        def run() -> Arrays:
            edited = method(frames, prompts, self.seed)
            if edited.shape != frames.shape or edited.dtype != np.uint8:
                raise UserError(
                    f"{type(config).__name__} made {edited.dtype} {list(edited.shape)} of uint8 {list(frames.shape)}; "
                    "a method returns frames as it gets them"
                )
            return {"frames": edited}

        return run

    def measure(self, result: Arrays, start: Arrays | None, measures: Measures) -> dict[str, float]:
        """Return a result's figures by name."""
        clip = EditedClip(self.source, result["frames"], self.line.pair, self.instruction, self.mask, self.truth)
        return measures.of(clip)


@lru_cache(maxsize=2)
def _read(task: FileTask) -> Video:
    from v2edit import video

    return video.read(task.line.path, task.frames)


@lru_cache(maxsize=1024)
def _checksum(path: Path) -> str:
    return fingerprint_input(path)["sha256"]


def select_tasks(
    lines: Sequence[SuiteLine], frames: int | None, count: int, kinds: Sequence[str] = ()
) -> list[FileTask]:
    """Return the first `count` tasks of each of these kinds (default: of all). Raises `UserError` for a kind that the
    suite has not, or a count below 1."""
    known = list(dict.fromkeys(line.kind for line in lines))
    by_slug = {kind.replace(" ", "-"): kind for kind in known} | {kind: kind for kind in known}
    for kind in kinds:
        if kind not in by_slug:
            raise UserError(f"there is no kind of edit {kind!r}; the suite has {', '.join(known)}")
    if count < 1:
        raise UserError(f"--count is {count}, expected 1 or more tasks of each kind")
    wanted = [by_slug[kind] for kind in kinds] or known
    of_kinds = [[line for line in lines if line.kind == kind][:count] for kind in known if kind in wanted]
    return [FileTask(line, frames) for group in of_kinds for line in group]
