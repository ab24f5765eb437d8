"""Write what an edit made: the edited video and all that shows it beside its source, in one pass over the frames."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from v2edit.jobs.clip import FormatOptions
from v2edit.runs.layout import COMPARISON_VIDEO, CONTACT_SHEET, EDITED, MASK_VIDEO, subtask_name

if TYPE_CHECKING:
    import numpy as np

    from v2edit.editing.editor import EditResult
    from v2edit.video import Video

MASK_ROW = "mask: white is edited"


def write_results(
    folder: Path,
    source: Video,
    part: slice,
    result: EditResult,
    title: str,
    output: FormatOptions,
    save_frames: bool,
    save_first: bool,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the edit of a part of a video: the video after each subtask, the comparison, the mask where there is one,
    the sheet, with the edit's `title`, and as PNG files the frames or the first one, where these are to be saved.
    `on_frame` is called with how many frames are written, of how many, first of all none. Raises `UserError` where
    one cannot be."""
    import numpy as np

    from v2edit import video as videos
    from v2edit.video.masks import open_share, share_picture
    from v2edit.video.sheets import COLUMNS, open_compare, shrink_to_cell, spread_columns
    from v2edit.video.stream import clip_size

    count, height, width = clip_size(source.frames)
    last, edits = len(result.subtasks), zip(*result.subtasks, strict=True)
    shares, nothing = None if result.share is None else iter(result.share), np.zeros((height, width), np.float32)
    labels = ["source", *(f"subtask {number}" for number in range(1, last)), f"edited: {title}"]
    rows: dict[str, list[np.ndarray]] = {label: [] for label in [*labels, *([MASK_ROW] if shares else [])]}
    edited_count = part.stop - part.start
    shown = {part.start + k for k in spread_columns(edited_count, min(COLUMNS, edited_count)).tolist()}
    with ExitStack() as stack:
        stems = [*(subtask_name(number) for number in range(1, last)), EDITED]
        writers = [stack.enter_context(output.open(source, folder / stem)) for stem in stems]
        if save_frames and output.format != "png":
            write_png = stack.enter_context(videos.open_folder(source, folder / EDITED))
        else:
            write_png = None
        compare, sizes = folder / COMPARISON_VIDEO, [(height, width)] * 2
        write_pair = stack.enter_context(open_compare(compare, count, sizes, source.fps, source.path, source.times))
        write_share = stack.enter_context(open_share(folder / MASK_VIDEO, source)) if shares else None
        on_frame(0, count)
        for k, before in enumerate(source.frames):
            is_edited = part.start <= k < part.stop
            videos_after: tuple[np.ndarray, ...] = next(edits) if is_edited else (before,) * last
            for write_frame, frame in zip(writers, videos_after, strict=True):
                write_frame(frame)
            after, shown_frames = videos_after[-1], [before, *videos_after]
            write_pair(before, after)
            if write_png is not None:
                write_png(after)
            if write_share is not None and shares is not None:
                write_share(share := next(shares) if is_edited else nothing)
                shown_frames.append(share_picture(share))
            if k in shown:
                for row, frame in zip(rows.values(), shown_frames, strict=True):
                    row.append(shrink_to_cell(frame))
            if k == 0 and save_first:
                videos.write_still(after, folder / f"{EDITED}.png")
            on_frame(k + 1, count)
    videos.contact_sheet({label: np.stack(row) for label, row in rows.items()}, folder / CONTACT_SHEET)
