"""The columns of tables of figures, of `v2edit bench` and `v2edit eval`: what each is called and what it means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A figure's column: its heading, decimals, whether more is better, and its explanation for the notes."""

    heading: str
    decimals: int
    more: bool = True
    note: str = ""


# In the order of the bench's table, which compares kinds of edit by the first that it has.
COLUMNS = {
    "score": Column("score", 3, note="harmonic mean of success and SSIM outside"),
    "psnr_held_out": Column("PSNR", 2,
        note="of the edited scene against the true edited scene, in views that were held out, in dB"),
    "held_out_inside": Column("inside", 2, note="the same where the true edit changes something"),
    "held_out_outside": Column("outside", 2, note="the same where it changes nothing"),
    "success": Column("success", 3,
        note="share of the attributes that the edit changes which are read as in the target"),
    "kept": Column("kept", 3, note="share of the others which are read as in the source"),
    "clip_preference": Column("CLIP preference", 3,
        note="share of frames that CLIP finds nearer to the target prompt than to the source's"),
    "ssim_outside": Column("SSIM outside", 3, note="against the source where the true edit changes nothing"),
    "psnr_outside": Column("PSNR outside", 2, note="the same, in dB"),
    "ssim_inside": Column("SSIM inside", 3, note="against the true result where the true edit changes something"),
    "psnr_inside": Column("PSNR inside", 2, note="the same, in dB"),
    "flicker": Column("flicker", 2, more=False,
        note="mean absolute second difference over time of the error outside, in levels of 255"),
    "hue": Column("hue", 2, note="share of recoloured objects of the right hue"),
    "ctids": Column("CTIDS", 3, 
        note="CLIP text-image directional similarity: whether frames change as the prompts do, -1 to 1"),
    "cdc": Column("CDC", 3, 
        note="CLIP direction consistency: whether the video changes from frame to frame as its source does; "
        "undefined (–) where the source stands still"),
    "edit_transfer": Column("edit transfer", 2, note="share of the edited video's change that the scene shows"),
    "quality": Column("quality", 1, note="how good the video looks by itself, 1 to 100, as a language model judges it"),
    "preservation": Column("preservation", 1, note="how well what the instruction does not speak of is kept, the same"),
    "fulfilment": Column("fulfilment", 1, note="how well the edit does what was asked, the same"),
    "overall": Column("overall", 1, note="mean of the three (LVLM score)"),
    "± overall": Column("± overall", 1, more=False, note="its spread over the queries"),
    "seconds": Column("seconds", 1, more=False, note="of one thread, on a CPU its own"),
}  # fmt: skip


def head(name: str) -> str:
    """Return a column's heading, with an arrow to where it is better."""
    column = COLUMNS[name]
    return f"{column.heading} {'↑' if column.more else '↓'}"


def explain_columns(names: Iterable[str]) -> str:
    """Return the explanation of columns in one paragraph."""
    known = (COLUMNS[name] for name in names)
    return f"{'; '.join(f'{one.heading}: {one.note}' for one in known if one.note)}."
