"""An edit in progress: from one subtask's frames to the next one's, by way of latents.

Letters: T frames, F latent frames, C channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from torch import Tensor

from v2edit.backbones import Backbone, Size
from v2edit.backbones.memory import MemoryMode
from v2edit.editing import controls
from v2edit.editing.block_processes import BlockProcesses
from v2edit.editing.blocks import Blocks, BlockSettings, blocks_of
from v2edit.editing.blockwise import BlockLoop
from v2edit.editing.change import latent_change
from v2edit.editing.coder import ClipCoder
from v2edit.editing.config import EditConfig
from v2edit.editing.latents import LatentStore, stream_file
from v2edit.editing.local import EVERYWHERE, LatentBlend, LocalEdit, latent_mask
from v2edit.editing.matte import find_share, stream_share
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.progression import AlignedText, WrittenText
from v2edit.editing.resize import frame_index, resize_clip
from v2edit.editing.sketch import SKETCHING, Sketch
from v2edit.editing.state import LOOP, FrameNoise, noise_stream
from v2edit.editing.subtask import Subtask, edit_whole
from v2edit.runs.snapshots import LoopSnapshot, Snapshots
from v2edit.video.colour_hold import ColourDrift, estimate_drift, hold_colours
from v2edit.video.composite import composite
from v2edit.video.feather import spread_in_time
from v2edit.video.stream import Frames, FrameStream, as_stream, clip_size, map_frames


@dataclass(frozen=True)
class Progress:
    """A finished denoising step: `step` of `steps` in `subtask` of `subtasks`, all counted from 1; of a video of
    several shots in which `shot`, and its number among the `shots` that are edited. Where a video is edited with
    several seeds, also the `seed` and its number among them. Of a long video also what comes before and after these
    steps is reported, frame by frame, from 0 on: then the `stage` says what that is. A job adds the `seconds_left` of
    this edit, None while none is timed, and the stages that come `then` and are not in them. `sketch`: what the edit
    looks like so far, small and in rough colours, uint8 [S, h, w, 3], the frames of one shot or some of them; of an
    edit in blocks also within a step, as the stage `SKETCHING`."""

    subtask: int
    subtasks: int
    step: int
    steps: int
    seed: int | None = None
    seed_number: int = 1
    seeds: int = 1
    stage: str = "editing"
    shot: int = 1
    shot_number: int = 1
    shots: int = 1
    seconds_left: float | None = None
    then: tuple[str, ...] = ()
    sketch: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def phase(self) -> str:
        seed = "" if self.seed is None else f"seed {self.seed} ({self.seed_number}/{self.seeds}), "
        shot = "" if self.shots == 1 else f"shot {self.shot} ({self.shot_number} of {self.shots}), "
        if self.stage == "editing":
            return f"{seed}{shot}subtask {self.subtask}/{self.subtasks}"
        return seed + self.stage if self.stage == "writing" else seed + shot + self.stage


@dataclass
class EditSession:
    """An edit in progress, one subtask at a time (V2Edit Sec. 3.3), with `subtask` of them behind it; `original` and
    `current` are latents [1, F, C, h, w] of the original video and of the last result, `source` is the original video
    `blend` the local edit in latents and `found` the share [T, H, W] that the model finds; `drift` is that of the last
    result's colours, before it is taken out."""

    batcher: MicroBatcher
    text: AlignedText | WrittenText
    config: EditConfig
    on_progress: Callable[[Progress], None] | None = None
    snapshots: Snapshots | None = None
    local: LocalEdit = EVERYWHERE
    block_settings: BlockSettings = BlockSettings()
    processes: BlockProcesses | None = None
    subtask: int = field(default=0, init=False)
    source: Frames = field(init=False)
    fitted: Size = field(init=False)
    blend: LatentBlend | None = field(default=None, init=False)
    drift: ColourDrift | None = field(default=None, init=False)
    found: Frames | None = field(default=None, init=False)
    sketch: Sketch | None = field(default=None, init=False)
    original: Tensor = field(init=False)
    current: Tensor = field(init=False)
    blocks: Blocks | None = field(default=None, init=False)
    store: LatentStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = LatentStore(self.snapshots.folder if self.snapshots else None)

    @property
    def backbone(self) -> Backbone:
        return self.batcher.backbone

    def next_subtask(self, video: Frames | None = None) -> Frames:
        """Edit one more subtask; return its video, uint8 [T, H, W, 3], a stream if the original is one. The first
        call's `video` is the original. A later one stands in for the last subtask's result: what a scene shows, say,
        that was reconstructed from it. Without one the subtask starts from the last one's latents."""
        loop, latents = self.config.loop, None
        if video is not None:
            assert video.dtype == np.uint8 and video.ndim == 4 and video.shape[3] == 3, video.shape
            if self.subtask == 0:
                self.source, self.fitted = video, self.backbone.nearest_size(Size(*clip_size(video)), loop)
            self._recall_mode()
            fitted = resize_clip(video, self.fitted, loop)
            latents = self.coder.encode(fitted, f"encoded-{self.subtask + 1}")
            if self.subtask == 0:
                self.blend = self._begin_blend(latents)
                if self.on_progress is not None:
                    self.sketch = Sketch.of(self.backbone, latents, fitted, self._frame_indices()[1])
        edited = self.next_latents(latents)
        self._recall_mode()
        frames = self.coder.decode(edited, f"decoded-{self.subtask}")
        if self.local.find:
            found = self._find_share(frames)
            self.found = found if self.found is None else _largest(found, self.found)
        decoded = stream_file(frames) if isinstance(self.source, FrameStream) else np.array(frames, copy=None)
        result = resize_clip(decoded, Size(*clip_size(self.source)), loop)
        share = self.share
        self.drift = estimate_drift(self.source, result, None if share is None else spread_in_time(share))
        if self.local.keep_colours:
            result = hold_colours(result, self.drift)
        # Beside a mask that was found, what differs from the source is the edit's own, and no drift to be taken off it.
        seam = None if self.found is None else "feather"
        return result if share is None else composite(self.source, result, share, seam)

    @cached_property
    def coder(self) -> ClipCoder:
        """What codes the video."""

        def report(stage: str, done: int, total: int) -> None:
            if self.on_progress is not None:
                number = min(self.subtask + (stage == "encoding"), self.config.subtasks)
                self.on_progress(Progress(number, self.config.subtasks, done, total, stage=stage))

        return ClipCoder(self.backbone, self.fitted, self.config.loop, self.store, self.snapshots, report)

    @property
    def joints(self) -> list[int]:
        """The frames of the video with which the autoencoder's later chunks begin: where a long clip may jump."""
        frames, loop = self.fitted.frames, self.config.loop
        chunks = self.backbone.chunk_of(frames, loop)[frame_index(frames, len(self.source), loop)]
        return (np.flatnonzero(np.diff(chunks)) + 1).tolist()

    @property
    def change(self) -> float:
        """How far the last result's latents are from the original's (`latent_change`)."""
        return latent_change(self.original, self.current)

    @property
    def share(self) -> Frames | None:
        """How much of the edit each pixel has so far, float32 [T, H, W] of the video's size; None for all of it
        everywhere."""
        given, found = self.local.share, self.found
        if found is None or self._is_everywhere(found):
            return given
        return found if given is None else map_frames(lambda k, one, other: np.minimum(one, other), [given, found])

    def _is_everywhere(self, found: Frames) -> bool:
        if isinstance(found, np.ndarray):
            return found.min() == 1
        assert self.blend is not None
        return self.blend.changed is None or float(self.blend.changed.min()) == 1

    def _find_share(self, edited: np.ndarray) -> Frames:
        """Return how much of the edit each pixel takes by what the model changed, float32 [T, H, W] of the video's
        size. `edited`: the decoded frames, uint8 [T', h, w, 3]."""
        assert self.blend is not None
        changed, loop, size = self.blend.changed, self.config.loop, clip_size(self.source)
        streamed = isinstance(self.source, FrameStream)
        if changed is None or (streamed and float(changed.min()) == 1):  # no step was controlled, or all changed
            everything = np.broadcast_to(np.ones((), np.float32), size)
            return as_stream(everything) if streamed else everything
        indices, autoencode = self._frame_indices(), partial(self.coder.decode, self.original, "decoded-0")
        if isinstance(self.source, FrameStream):
            source = resize_clip(self.source, self.fitted, loop)
            return stream_share(changed, edited, autoencode(), source, *indices, size)
        return find_share(
            changed, edited, autoencode, partial(resize_clip, self.source, self.fitted, loop), *indices, size
        )

    def _begin_blend(self, original: Tensor) -> LatentBlend | None:
        """Return the local edit in latents, which begins with those of the original [1, F, C, h, w]."""
        share, find = self.local.share, self.local.find
        if share is None:
            return LatentBlend(original, find=True) if find else None
        allowed = latent_mask(np.asarray(spread_in_time(share)), *self._frame_indices(), original.shape[1:])
        return LatentBlend(original, allowed.to(original), find)

    def _frame_indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the video's frame that each frame for the model is, and the latent frame that holds it, int [T']."""
        frames, loop = self.fitted.frames, self.config.loop
        return frame_index(len(self.source), frames, loop), self.backbone.latent_frame_of(frames, loop)

    def next_latents(self, current: Tensor | None = None) -> Tensor:
        """Edit one more subtask; the same on latents [1, F, C, h, w]."""
        if current is not None:
            self.blocks = blocks_of(self.config, self.backbone, current.shape[1], self.block_settings)
            self.current = current.to(self.backbone.device) if self.blocks is None else current.cpu()
        if self.subtask == 0:
            self.original = self.current
        self.subtask += 1
        text = self.text.for_subtask(self.subtask, self.config.subtasks)
        sources = controls.mix_sources(self.original, self.current, text, self.config.mixture, self.subtask)
        local = self.blend or LatentBlend(self.current)
        if self.blocks is None:
            subtask = Subtask.of(self.batcher, sources, text, self.config, self.current.shape[1:], local.find)
            draws = noise_stream(self.config.seed, self.subtask, self.original)
            snapshot = self._snapshot(self.subtask)
            self.current = edit_whole(subtask, self.current, draws, local, snapshot, self._report, self._watch)
        else:
            shape = (self.blocks.length, *self.current.shape[2:])
            # A block has ends of its own; what the layers of all blocks add would be too much to keep.
            config = replace(self.config, loop=False, cache=0.0)
            subtask = Subtask.of(self.batcher, sources, text, config, shape, local.find)
            noise = FrameNoise(self.config.seed, self.subtask, shape[1:])
            loop = BlockLoop(
                subtask, self.blocks, self.current, noise, local, self.store, f"{LOOP}-{self.subtask}", self._report,
                self._watch, self.processes,
            )  # fmt: skip
            self.current = loop.run(self._block_snapshot(loop))
        return self.current

    def _snapshot(self, subtask: int) -> LoopSnapshot:
        return self.snapshots.loop(f"{LOOP}-{subtask}") if self.snapshots else LoopSnapshot()

    def _block_snapshot(self, loop: BlockLoop) -> LoopSnapshot:
        """Return the snapshot of a loop over blocks, which is saved where that costs little; it counts steps."""
        if self.snapshots is None:
            return LoopSnapshot()
        on_step, blocks = self.snapshots.on_step, len(loop.order)
        steps = loop.subtask.schedule.steps - loop.subtask.start
        counted = replace(self.snapshots, on_step=lambda name, left: on_step(name, math.ceil(left * steps / blocks)))
        return counted.loop(loop.name, every_step=False)

    def _recall_mode(self) -> None:
        """Take the memory mode in which an edit that was interrupted began the next subtask, if it did: what it encoded
        and decoded before that was in tiles, which are another result, or not."""
        if (state := self._snapshot(self.subtask + 1).load(tensors=False)) and (begun := state.facts.get("begun")):
            self.backbone.memory_mode = MemoryMode(**begun)

    def _report(self, step: int, steps: int) -> None:
        if self.on_progress is not None:
            frames = None if self.sketch is None else self.sketch.frames
            self.on_progress(Progress(self.subtask, self.config.subtasks, step, steps, sketch=frames))

    def _watch(self, rows: slice, x0: Tensor) -> None:
        if self.sketch is not None:
            self.sketch.update(rows, x0)
            if self.blocks is not None and self.on_progress is not None:  # whose steps may take long
                frames = self.sketch.frames
                self.on_progress(Progress(self.subtask, self.config.subtasks, 0, 1, stage=SKETCHING, sketch=frames))


def _largest(one: Frames, other: Frames) -> Frames:
    """Return the larger of two shares [T, H, W] in each pixel."""
    return map_frames(lambda k, a, b: np.maximum(a, b), [one, other])
