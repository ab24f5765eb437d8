"""The editor: frames and two prompts to edited frames, subtask by subtask.

Letters: T frames, F latent frames, C channels. Indices of steps run from the noisiest (0) to the clean end (N), as in
`sampling.Schedule`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from v2edit.backbones import Backbone
from v2edit.backbones.families import FRAME_RATE
from v2edit.editing.block_processes import BlockProcesses
from v2edit.editing.blocks import BlockSettings
from v2edit.editing.config import EditConfig
from v2edit.editing.local import EVERYWHERE, LocalEdit, plan_window
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.progression import AlignedText, WrittenText, encode_progression
from v2edit.editing.session import EditSession, Progress
from v2edit.host import retry_smaller_on_oom
from v2edit.prompts import PromptPair
from v2edit.runs.snapshots import Snapshots
from v2edit.video.colour_hold import ColourDrift
from v2edit.video.crop import extract, paste
from v2edit.video.stream import Frames, clip_size


@dataclass(frozen=True)
class EditResult:
    """The video after each subtask, uint8 [T, H, W, 3] at the source's size; an earlier one is a milder edit. `share`:
    how much of the edit each pixel has in the end, float32 [T, H, W]; None where that is all of it everywhere.
    `drift`: of the last one's colours against the source's, before it is taken out, as far as it is known; `joints`:
    the frames with which the autoencoder's later chunks begin; `change`: how far the latents are from the source's
    (`latent_change`)."""

    subtasks: Sequence[Frames]
    share: Frames | None = None
    drift: ColourDrift | None = None
    joints: Sequence[int] = ()
    change: float = math.inf

    @property
    def frames(self) -> Frames:
        return self.subtasks[-1]


class Editor:
    """Edits videos with a backbone (V2Edit Fig. 2 and 3).

    >>> editor = Editor(backbones.load("primitives"))
    >>> editor.edit(frames, PromptPair("a big red ball …", "a big blue ball …")).frames"""

    def __init__(self, backbone: Backbone, single_use: bool = False, blocks: BlockSettings = BlockSettings()) -> None:
        """With `single_use` the text encoders are freed once the first edit's prompts are encoded. `blocks`: how long
        clips are cut into blocks, where they are."""
        self.backbone, self.single_use, self.blocks = backbone, single_use, blocks
        self.batcher, self.processes = MicroBatcher(backbone), BlockProcesses.of(backbone)

    def edit(
        self,
        frames: Frames,
        prompts: PromptPair,
        config: EditConfig = EditConfig(),
        on_progress: Callable[[Progress], None] | None = None,
        snapshots: Snapshots | None = None,
        frame_rate: float = FRAME_RATE,
        local: LocalEdit = EVERYWHERE,
    ) -> EditResult:
        """Edit uint8 frames [T, H, W, 3] of any length and size, at a `frame_rate` in frames a second, which matters to
        models that place frames by seconds; the result has the same, and is a stream if they are one. With `snapshots`,
        an edit that was interrupted resumes when it is called again, with the same result. `local`: what the edit may
        not change, and keeps to the last bit. Raises `UserError` for a loop of a model that cannot make one."""
        if (boxes := plan_window(local, self.backbone.native_size)) is not None:
            clip, within = extract(frames, boxes), local.in_window(boxes)
            edited = self.edit(clip, prompts, config, on_progress, snapshots, frame_rate, within)
            assert edited.share is not None
            nothing = np.broadcast_to(np.zeros((), np.float32), clip_size(frames))
            share = paste(nothing, edited.share, boxes)
            videos = [paste(frames, video, boxes) for video in edited.subtasks]
            return replace(edited, subtasks=videos, share=share)
        edit = self.begin(prompts, config, on_progress, snapshots, frame_rate, local)
        videos = [edit.next_subtask(frames), *(edit.next_subtask() for _ in range(1, edit.config.subtasks))]
        return EditResult(videos, edit.share, edit.drift, edit.joints, edit.change)

    def begin(
        self,
        prompts: PromptPair,
        config: EditConfig = EditConfig(),
        on_progress: Callable[[Progress], None] | None = None,
        snapshots: Snapshots | None = None,
        frame_rate: float = FRAME_RATE,
        local: LocalEdit = EVERYWHERE,
    ) -> EditSession:
        """Begin an edit that is run one subtask at a time; the arguments are those of `edit`."""
        backbone, config = self.backbone, config.for_prompts(prompts)
        backbone.set_frame_rate(frame_rate)
        backbone.reset_memory_mode()
        encode = partial(encode_progression, backbone, prompts, config.negative_prompt, config.padding_shared)
        text = retry_smaller_on_oom(encode, backbone.offload_more)
        if self.single_use:
            backbone.free_text_encoders()
        return EditSession(self.batcher, text, config, on_progress, snapshots, local, self.blocks, self.processes)

    def subtasks(
        self,
        x0: Tensor,
        text: AlignedText | WrittenText,
        config: EditConfig,
        on_progress: Callable[[Progress], None] | None = None,
        snapshots: Snapshots | None = None,
    ) -> Iterator[Tensor]:
        """Yield the latents [1, F, C, h, w] after each subtask (V2Edit Sec. 3.3)."""
        session = EditSession(
            self.batcher, text, config, on_progress, snapshots, EVERYWHERE, self.blocks, self.processes
        )
        for subtask in range(config.subtasks):
            yield session.next_latents(x0 if subtask == 0 else None)
