"""Edits of clips of several shots, or of more frames a second than the model's: each part a clip of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from v2edit.errors import UserError
from v2edit.jobs.clip import parse_rate
from v2edit.jobs.shots import AUTO, SOURCE, Shot
from v2edit.prompts import PromptPair

if TYPE_CHECKING:
    from v2edit.backbones import Backbone
    from v2edit.editing.config import ResolvedConfig
    from v2edit.editing.editor import Editor, EditResult, Progress
    from v2edit.editing.local import LocalEdit
    from v2edit.runs.snapshots import Snapshots
    from v2edit.video.colour_hold import ColourDrift
    from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
Steps = Mapping[str, int]


def plan_shots(shots: Sequence[Shot], steps: Steps) -> dict[str, int]:
    """Return the steps of each loop of an edit of shots, by name, from those of one clip's."""
    numbers = [number for number, one in enumerate(shots) if one.edited] or [0]
    return {_loop_name(number, name): count for number in numbers for name, count in steps.items()}


def _loop_name(number: int, name: str) -> str:
    """Return the name of a loop in a run of several shots: the first shot's are those of a clip of one."""
    return f"{name}-shot-{number + 1}" if number else name


def weigh_shots(shots: Sequence[Shot], steps: Steps, given: Sequence[int]) -> dict[str, float]:
    """Return what a step of each loop of `plan_shots` takes, by the frames of each shot that the model is given."""
    weights = plan_shots(shots, dict.fromkeys(steps, 1))
    each = np.repeat(np.asarray(given, float) / given[0], len(steps)).tolist()
    return dict(zip(weights, each, strict=True))


@dataclass(frozen=True, eq=False)
class Rate:
    """The frames of a clip, how many a second there are, and of those that a model is given: auto, source or a number.
    What is `known` of the shots, by their first frames, is kept: the motion of each is looked at once."""

    frames: Frames
    fps: float
    model_fps: str = SOURCE
    known: dict[int, int] = field(default_factory=dict)

    def every(self, clip: slice, backbone: Backbone) -> int:
        """Return n where every n-th of the frames of a shot is given to a model. Those that are no longer than the
        model's are given whole, unless a rate is asked for; by default no more are left out than the motion allows."""
        if clip.start not in self.known:
            self.known[clip.start] = self._find_every(clip, backbone)
        return self.known[clip.start]

    def _find_every(self, clip: slice, backbone: Backbone) -> int:
        from v2edit.editing.rates import follows_motion, frames_apart

        if self.model_fps == SOURCE:
            return 1
        which = f"in the shot at {clip.start / self.fps:.4g} s things move" if clip.start else "things move"
        if self.model_fps != AUTO:
            every = frames_apart(self.fps, float(parse_rate(self.model_fps, "--model-fps")))
            if not follows_motion(self.frames[clip], every):
                log.warning(
                    "--model-fps: %s too fast to be seen in one frame of %d; --model-fps auto edits more", which, every
                )
            return every
        if backbone.native_fps is None or clip.stop - clip.start <= backbone.native_size.frames:
            return 1
        most = frames_apart(self.fps, backbone.native_fps)
        every = next(n for n in range(most, 0, -1) if follows_motion(self.frames[clip], n))
        if every < most:
            more = "every frame is" if every == 1 else f"one frame in {every} is"
            log.info("rate: %s too fast to be seen in one frame of %d: %s edited", which, most, more)
        return every

    def given(self, clip: slice, backbone: Backbone) -> int:
        """Return how many frames of a shot a model is given."""
        every, count = self.every(clip, backbone), clip.stop - clip.start
        return len(range((count - 1) % every // 2, count, every))


def given_frames(shots: Sequence[Shot], count: int, rate: Rate, backbone: Backbone) -> list[int]:
    """Return how many frames of each shot that is edited a model is given, or of the whole clip of `count` frames."""
    clips = [one.frames for one in shots if one.edited] or [slice(0, count)]
    return [rate.given(clip, backbone) for clip in clips]


def edit_shots(
    editor: Editor,
    frames: Any,
    prompts: PromptPair,
    config: ResolvedConfig,
    on_progress: Callable[[Progress], None] | None,
    snapshots: Snapshots,
    rate: Rate,
    local: LocalEdit,
    shots: Sequence[Shot] = (),
) -> EditResult:
    """Edit frames, uint8 [T, H, W, 3], as `Editor.edit` does, each of several shots as a clip of its own; those that
    are not edited stay as they are. Of a shot of a higher rate than the model's every n-th frame is edited."""
    from v2edit.editing.editor import Editor

    if not shots:
        whole = slice(0, len(frames))
        return _edit_clip(editor, frames, prompts, config, on_progress, snapshots, rate, whole, local)
    editor = Editor(editor.backbone)  # whose text encoders are needed for each shot
    edited = [number for number, one in enumerate(shots) if one.edited]
    results: dict[int, EditResult] = {}
    for place, number in enumerate(edited, start=1):
        shot = shots[number]
        pair = shot.prompts or prompts
        if shot.prompts is not None:
            log.info("shot %d: %s", number + 1, pair.target)
        own_config = replace(config, seed=shot_seed(config.seed, number))
        share = None if local.share is None else local.share[shot.frames]
        own_local = replace(local, share=share)
        report = None if on_progress is None else partial(_report, on_progress, number + 1, place, len(edited))
        own_snapshots = shot_snapshots(snapshots, number)
        if _has_all_steps(own_snapshots, editor.backbone, config):
            log.info("shot %d: its steps are done; its frames are made of them again", number + 1)
        results[number] = _edit_clip(
            editor, frames[shot.frames], pair, own_config, report, own_snapshots, rate, shot.frames, own_local
        )
    return join_results(frames, shots, results)


def _has_all_steps(snapshots: Snapshots, backbone: Backbone, config: ResolvedConfig) -> bool:
    """Return whether an edit that is not in blocks stands after its last step."""
    from v2edit.editing.state import LOOP

    loop_state = snapshots.loop(f"{LOOP}-{config.subtasks}").load(tensors=False)
    return loop_state is not None and loop_state.facts.get("k") == backbone.schedule(config.steps).steps


def _edit_clip(
    editor: Editor,
    frames: Any,
    prompts: PromptPair,
    config: ResolvedConfig,
    on_progress: Callable[[Progress], None] | None,
    snapshots: Snapshots,
    rate: Rate,
    clip: slice,
    local: LocalEdit,
) -> EditResult:
    from v2edit.editing.editor import Progress

    every = rate.every(clip, editor.backbone)
    if every == 1:
        return editor.edit(frames, prompts, config, on_progress, snapshots, rate.fps, local)
    try:
        from v2edit.editing.rates import edit_every
    except ImportError as error:
        raise UserError(
            f"--model-fps takes OpenCV ({error}): pip install opencv-python-headless, or give --model-fps source"
        ) from error
    log.info("rate: one frame in %d is edited, %.4g a second; the others take their change", every, rate.fps / every)

    def edit(some: Frames, fps: float, own: LocalEdit) -> EditResult:
        return editor.edit(some, prompts, config, on_progress, snapshots, fps, own)  # pyright: ignore[reportArgumentType]

    def report(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(Progress(config.subtasks, config.subtasks, done, total, stage="carrying"))

    return edit_every(edit, frames, every, rate.fps, local, config.loop, report)


def shot_seed(seed: int, number: int) -> int:
    """Return the seed of a shot's noise: the first shot's is the clip's own, so that it is edited as a clip of one shot
    is; the others' are drawn from it."""
    if number == 0:
        return seed
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])


def shot_snapshots(snapshots: Snapshots, number: int) -> Snapshots:
    """Return the snapshots of a shot's loops: the first shot's are the run's, the others' lie in folders of their
    own."""
    if number == 0:
        return snapshots
    folder = snapshots.folder / f"shot-{number + 1}"
    folder.mkdir(exist_ok=True)

    def on_step(name: str, left: int) -> None:
        snapshots.on_step(_loop_name(number, name), left)

    return replace(snapshots, folder=folder, on_step=on_step)


def _report(
    on_progress: Callable[[Progress], None], shot: int, shot_number: int, shots: int, progress: Progress
) -> None:
    on_progress(replace(progress, shot=shot, shot_number=shot_number, shots=shots))


def join_results(frames: Frames, shots: Sequence[Shot], results: Mapping[int, EditResult]) -> EditResult:
    """Return the result of a clip of the results of its shots, by their places; those without one are the source's
    frames. The drift of colours is that of the edited shots."""
    from v2edit.editing.editor import EditResult
    from v2edit.video.stream import concatenate

    count = len(next(iter(results.values())).subtasks)
    videos: list[Any] = [
        concatenate([results[k].subtasks[n] if k in results else frames[one.frames] for k, one in enumerate(shots)])
        for n in range(count)
    ]
    share: Any = None
    if len(results) < len(shots) or any(one.share is not None for one in results.values()):
        share = concatenate([_share_of(results.get(k), one, frames.shape[1:3]) for k, one in enumerate(shots)])
    drifts, joints, first = [], [], 0
    for result in results.values():
        if result.drift is not None:
            drifts.append(result.drift)
            joints += [first + joint for joint in result.joints]
            first += len(result.frames)
    change = max(one.change for one in results.values())
    return EditResult(videos, share, _join_drifts(drifts), joints, change)


def _share_of(result: EditResult | None, shot: Shot, size: Sequence[int]) -> Frames:
    if result is not None and result.share is not None:
        return result.share
    return np.broadcast_to(np.float32(result is not None), (len(shot), *size))


def _join_drifts(drifts: Sequence[ColourDrift]) -> ColourDrift | None:
    if len(drifts) < 2:
        return drifts[0] if drifts else None
    names = [one.name for one in fields(drifts[0])]
    return type(drifts[0])(*(np.concatenate([getattr(one, name) for one in drifts]) for name in names))
