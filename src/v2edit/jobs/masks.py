"""What an edit may change: the options, the share of the edit in each pixel, and what the run folder shows of it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from v2edit.errors import UserError
from v2edit.files import atomic_path

if TYPE_CHECKING:
    from v2edit.backbones import Size
    from v2edit.editing.editor import EditResult
    from v2edit.editing.local import LocalEdit
    from v2edit.video import Video
    from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
AUTO = "auto"
# Of `EditResult.change`. Edits of the built-in model that can be seen change 0.2 and more, most 0.6 to 2; where only
# --alpha 0.15 of the steps are run, 0.01 to 0.07; with equal prompts 0.
LEAST_CHANGE = 0.1
# In the state folder: what a run that resumes may change.
SHARE_FILE, LARGE_SHARE_FILE = "share.npz", "share.zip"
File = Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True)
class MaskOptions:
    """What the edit may change; the rest of the frames stays the source's, bit for bit, up to the encoder."""

    mask: Annotated[str | None, arg(metavar="FILE|auto", help_behavior_hint="")] = None
    """White may change: a video, an image or a folder of images (greys are shares); auto: what the model itself
    changes. In Python an array, too: [T, H, W] or [H, W]."""
    keep: File = None
    """The other way round: white stays the source's (a face, say). Files as for --mask."""
    box: Annotated[str | None, arg(metavar="X,Y,W,H", help_behavior_hint="")] = None
    """The part of the picture that may change: left, top, width, height, in pixels or with % signs."""
    time: Annotated[str | None, arg(metavar="START-END", help_behavior_hint="")] = None
    """The part of the clip that may change, in seconds: 2.0-4.5, 2.0- or --time=-4.5. The model still sees the whole
    clip; with --start and --end it sees that part alone."""
    grow: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None
    """How far beyond the mask the edit fades out (default: 1/60 of the short side); with 0 it fades within. A run's
    mask.mp4 is taken as it is."""
    crop: Literal["auto", "off"] = "auto"
    """Edit a small region at the model's full resolution (auto), or in the whole picture (off)."""
    colour: Literal["keep", "free"] = "keep"
    """Hold the edit to the video's colours by what did not change (keep), or leave all as the model makes it (free)."""

    def __post_init__(self) -> None:
        for name, mark in (("box", ","), ("time", "-")):  # in Python numbers, too: (x, y, w, h) and (start, end)
            if isinstance(value := getattr(self, name), (tuple, list)):
                object.__setattr__(self, name, mark.join("" if one is None else str(one) for one in value))
        if self.grow is not None and self.grow < 0:
            raise UserError(f"--grow is {self.grow}, expected 0 or more")

    @property
    def is_given(self) -> bool:
        """Whether anything but the model limits the edit."""
        return any(value is not None for value in (None if self.finds else self.mask, self.keep, self.box, self.time))

    @property
    def finds(self) -> bool:
        """Whether the model is to find out what it changes."""
        return isinstance(self.mask, str) and self.mask == AUTO

    def build(self, source: Video, part: slice = slice(None)) -> LocalEdit:
        """Return the local edit of a part of a clip, whose times and masks are the whole one's. Raises `UserError`, in
        one line, for a mask, box or time that does not fit it."""
        from v2edit.editing.local import LocalEdit
        from v2edit.video.extent import measure_extent
        from v2edit.video.spool import spool
        from v2edit.video.stream import FrameStream

        share = self._share(source)[part] if self.is_given else None
        if isinstance(share, FrameStream):
            share = spool(share)  # which is read several times
        if share is not None and measure_extent(share).is_empty:
            raise UserError("nothing may change between --start and --end: the mask is black there")
        return LocalEdit(share, self.finds, crop=self.crop == "auto", keep_colours=self.colour == "keep")

    def _share(self, source: Video) -> Frames:
        import numpy as np

        from v2edit.video import masks
        from v2edit.video.feather import feathered_share
        from v2edit.video.stream import clip_size, map_frames

        shape = clip_size(source.frames)

        def read(given: Any, marks: masks.Marks) -> Frames | None:
            if given is None:
                return None
            is_file = isinstance(given, (str, Path))
            if is_file and source.path is not None and os.path.exists(given) and os.path.samefile(given, source.path):
                raise UserError(f"{given} is the video itself; a mask is white where it may change, else black")
            return masks.read_mask(given, source, marks) if is_file else masks.mask_from_array(given, shape)

        mask, keep = read(None if self.finds else self.mask, "change"), read(self.keep, "keep")
        box = None if self.box is None else masks.box_mask(self.box, *shape[1:])
        time = None if self.time is None else masks.time_mask(self.time, source)
        allowed = masks.combine_masks(shape, mask, keep, box, time)
        if mask is None or self.grow or not (isinstance(self.mask, (str, Path)) and masks.is_share(self.mask)):
            return feathered_share(allowed, keep, self.grow)
        # A run's mask.mp4 is feathered already, and comes back as it was; what else is given limits it.
        limits = feathered_share(masks.combine_masks(shape, None, keep, box, time), keep, self.grow)
        return map_frames(lambda _, one, other: np.minimum(one, other), [mask, limits])

    @property
    def facts(self) -> dict[str, Any]:
        """The options for run.json, files by their paths."""
        given = {name: getattr(self, name) for name in ("mask", "keep", "box", "time", "grow", "crop", "colour")}
        files = {name: _describe(given[name]) for name in ("mask", "keep")}
        return given | files


def _describe(given: Any) -> str | None:
    import numpy as np

    if given is None:
        return given
    if isinstance(given, (str, Path)):
        return AUTO if given == AUTO else str(Path(given).absolute())
    return f"an array {list(np.shape(given))}"


def save_share(local: LocalEdit, folder: Path) -> None:
    """Save what a run may change in its state folder, from which it resumes whatever becomes of the mask's file."""
    import numpy as np

    from v2edit.video.spool import spool

    if isinstance(local.share, np.ndarray):
        with atomic_path(folder / SHARE_FILE) as part, part.open("wb") as file:
            np.savez_compressed(file, share=local.share)
    elif local.share is not None:
        with atomic_path(folder / LARGE_SHARE_FILE) as part:
            spool(local.share, part)


def load_local(record: dict[str, Any], folder: Path) -> LocalEdit:
    """Load the local edit of a run that resumes, by its run.json and its state folder."""
    import numpy as np

    from v2edit.editing.local import LocalEdit
    from v2edit.video.spool import open_spool

    path, large, options = folder / SHARE_FILE, folder / LARGE_SHARE_FILE, record.get("local", {})
    share = np.load(path)["share"] if path.exists() else open_spool(large) if large.exists() else None
    given = {name: options.get(name) for name in ("mask", "keep", "box", "time")}
    if share is None and any(value is not None and (name, value) != ("mask", AUTO) for name, value in given.items()):
        raise UserError(f"{path} is gone, which says what the run may change: start it again, with another -o")
    crop, keep_colours = options.get("crop") == "auto", options.get("colour") == "keep"
    return LocalEdit(share, find=options.get("mask") == AUTO, crop=crop, keep_colours=keep_colours)


def describe_share(local: LocalEdit, size: Size) -> dict[str, str]:
    """Describe how much of a video a given `mask` lets change, and the `window` of a `size` that is edited in its
    place, where there is one."""
    if (facts := share_facts(local.share)) is None or local.share is None:
        return {}
    found = {"mask": f"{100 * facts['of_frames']:.3g} % of the picture may change, in {facts['frames']} frames"}
    height, width = local.share.shape[1:]
    if (size.height, size.width) != (height, width):
        found["window"] = f"{size.width}x{size.height} of {width}x{height} is edited, at the model's resolution"
    return found


def log_share(local: LocalEdit, size: Size) -> None:
    """Log what `describe_share` says."""
    for name, text in describe_share(local, size).items():
        log.info("%s: %s", name, text)


def log_found(share: Frames | None) -> None:
    """Log how much of a video an edit that finds its own mask has changed, float32 [T, H, W]; None for all of it."""
    facts = share_facts(share) or {"frames": 0, "of_frames": 0.0}
    if share is None:
        log.info("mask: the edit is everywhere, so nothing is limited")
    else:
        log.info("mask: %.3g %% of the picture is edited, in %d frames", 100 * facts["of_frames"], facts["frames"])


def warn_of_no_change(result: EditResult) -> None:
    """Warn where an edit changed next to nothing, or what it may change came out empty."""
    from v2edit.video.extent import measure_extent

    if result.change < LEAST_CHANGE or (result.share is not None and measure_extent(result.share).is_empty):
        log.warning(
            "next to nothing changed: try a higher --alpha, --strength strong, or prompts that differ in more words"
        )


def share_facts(share: Frames | None) -> dict[str, Any] | None:
    """Return for run.json how much of a video changes: in how many `frames`, and what part `of_frames` on average."""
    if share is None:
        return None
    from v2edit.video.extent import measure_extent

    part = measure_extent(share).part
    frames = part[part > 0]
    return {"frames": len(frames), "of_frames": round(float(frames.mean()), 5) if len(frames) else 0.0}
