"""The columns of tables of figures, of `v2edit bench` and `v2edit eval`: what each is called and what it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Column:
    """A figure's column: its heading, decimals, whether more is better, its explanation for the notes, the paper that
    it is from, and what it cannot tell."""

    heading: str
    decimals: int
    more: bool = True
    note: str = ""
    paper: str = ""
    limits: str = ""


# In the order of the bench's table, which compares kinds of edit by the first that it has.
COLUMNS = {
    "score": Column("score", 3,
        note="harmonic mean of success and SSIM outside, or of success and kept where under 5 % of pixels lie outside"),
    "psnr_held_out": Column("PSNR", 2,
        note="of the edited scene against the true edited scene, in views that were held out, in dB"),
    "held_out_inside": Column("inside", 2, note="the same where the true edit changes something"),
    "held_out_outside": Column("outside", 2, note="the same where it changes nothing"),
    "success": Column("success", 3,
        note="share of the attributes that the edit changes which are read as in the true edited clip"),
    "kept": Column("kept", 3, note="share of the others which are read as in the source"),
    "unsaid": Column("unsaid", 3, note="share of those which its prompt does not name that are read as in the source"),
    "unsaid_pattern": Column("pattern", 2, note="the same of patterns alone, which no caption names"),
    "unsaid_tone": Column("tone", 2, note="of their tones, black or white"),
    "unsaid_angle": Column("angle", 2, note="of the angles of stripes"),
    "unsaid_floor_pattern": Column("floor pattern", 2, note="of the floor's pattern"),
    "unsaid_backdrop": Column("backdrop", 2, note="of what stands behind"),
    "unsaid_light_from": Column("light from", 2, note="of the side that the light comes from"),
    "clip_preference": Column("CLIP preference", 3,
        note="share of frames that CLIP finds nearer to the target prompt than to the source's",
        limits="what was kept"),
    "ssim_outside": Column("SSIM outside", 3,
        note="against the source where the edit is to change nothing, by its true result or the task's mask",
        paper="Wang et al. 2004", limits="what the edit did inside"),
    "psnr_outside": Column("PSNR outside", 2, note="the same, in dB", limits="the same"),
    "lpips_outside": Column("LPIPS outside", 3, more=False,
        note="perceptual distance to the source there, inside the mask the source's pixels in both",
        paper="Zhang et al. 2018", limits="how large the outside is: a small one counts little"),
    "psnr_source": Column("PSNR source", 2, note="of whole frames against the source's, in dB",
        limits="whether a change was asked for: the unedited video is best"),
    "ssim_source": Column("SSIM source", 3, note="of whole frames against the source's",
        paper="Wang et al. 2004", limits="the same"),
    "lpips_source": Column("LPIPS source", 3, more=False, note="perceptual distance of whole frames to the source's",
        paper="Zhang et al. 2018", limits="the same"),
    "psnr_target": Column("PSNR target", 2, note="of whole frames against the true edited video's, in dB",
        limits="another edit that is as good"),
    "ssim_target": Column("SSIM target", 3, note="of whole frames against the true edited video's",
        paper="Wang et al. 2004", limits="the same"),
    "lpips_target": Column("LPIPS target", 3, more=False,
        note="perceptual distance of whole frames to the true edited video's", paper="Zhang et al. 2018",
        limits="the same"),
    "structure": Column("structure", 4, more=False,
        note="structure distance: mean squared difference of the self-similarities of DINO's keys to the source's",
        paper="Tumanyan et al. 2022", limits="a change of shape that was asked for from an error"),
    "warp_error": Column("warp error", 2, more=False,
        note="squared difference of neighbouring edited frames along the source's optical flow, in thousandths",
        paper="Lai et al. 2018", limits="a smooth video from a blurred or a still one, a new motion from an error"),
    "colour_drift": Column("colour drift", 2, more=False,
        note="of the frames' mean colour outside the mask against the source's, in levels of 255",
        limits="without a mask, a change of colour that was asked for from a drift"),
    "ssim_inside": Column("SSIM inside", 3, note="against the true result where the true edit changes something"),
    "psnr_inside": Column("PSNR inside", 2, note="the same, in dB"),
    "flicker": Column("flicker", 2, more=False,
        note="mean absolute second difference over time of the error outside, in levels of 255",
        limits="without a mask, a new motion from flicker"),
    "hue": Column("hue", 2, note="share of recoloured objects of the right hue"),
    "ctids": Column("CTIDS", 3, 
        note="CLIP text-image directional similarity: whether frames change as the prompts do, -1 to 1",
        paper="Haque et al. 2023", limits="where, and whether the rest was kept"),
    "cdc": Column("CDC", 3, 
        note="CLIP direction consistency: whether the video changes from frame to frame as its source does; "
        "undefined (–) where the source stands still",
        paper="Haque et al. 2023", limits="whether anything was edited: the unedited video has 1"),
    "ctids_video": Column("CTIDS, video", 3, note="the same of the edited video, before the scene is made of it"),
    "cdc_video": Column("CDC, video", 3, note="the same"),
    "clip_text": Column("CLIP text", 2, note="100 times the cosine of frames and the target prompt",
        paper="Hessel et al. 2021", limits="what was kept"),
    "clip_frames": Column("CLIP frames", 2, note="100 times the mean cosine between all pairs of frames",
        paper="Wu et al. 2023, LOVEU-TGVE", limits="a consistent video from a still one, which has 100"),
    "edit_transfer": Column("edit transfer", 2, note="share of the edited video's change that the scene shows"),
    "view_error_video": Column("view error, video", 2, more=False,
        note="squared difference of the same points in neighbouring frames of the edited video, along the depth of the "
        "scene that is made of it, in thousandths", limits="a scene that is as it should be from a smooth one"),
    "view_error": Column("view error", 2, more=False, note="the same of the scene's renders", limits="the same"),
    "reconstruction_psnr": Column("reconstruction", 2,
        note="PSNR of the unedited scene against photographs that were held out, in dB"),
    "quality": Column("quality", 1, note="how good the video looks by itself, 1 to 100, as a language model judges it"),
    "preservation": Column("preservation", 1, note="how well what the instruction does not speak of is kept, the same"),
    "fulfilment": Column("fulfilment", 1, note="how well the edit does what was asked, the same"),
    "overall": Column("overall", 1, note="mean of the three (LVLM score)"),
    "± overall": Column("± overall", 1, more=False, note="its spread over the queries"),
    "five_acc": Column("FiVE-Acc", 3,
        note="mean of the four that follow: whether a vision model sees the edit", paper="Li et al. 2025",
        limits="what was kept, and how it looks"),
    "five_yes_no": Column("YN", 3, note="share of edits of which it answers yes to the target and no to the source"),
    "five_choice": Column("MC", 3, note="share of edits of which it chooses the target"),
    "five_any": Column("YN or MC", 3, note="share with either"),
    "five_all": Column("YN and MC", 3, note="share with both"),
    "seconds": Column("seconds", 1, more=False, note="of one thread, on a CPU its own"),
}  # fmt: skip


CHANGE_FIGURES = ("edit_transfer", "view_error_video", "view_error")  # of a scene's change, in its run and in tables


def head(name: str, columns: Mapping[str, Column] = MappingProxyType(COLUMNS)) -> str:
    """Return a column's heading, with an arrow to where it is better."""
    column = columns[name]
    return f"{column.heading} {'↑' if column.more else '↓'}"


def explain_columns(names: Iterable[str], columns: Mapping[str, Column] = MappingProxyType(COLUMNS)) -> str:
    """Return the explanation of columns in one paragraph."""
    return f"{'; '.join(_explain(columns[name]) for name in names if columns[name].note)}."


def _explain(column: Column) -> str:
    paper = f" ({column.paper})" if column.paper else ""
    return f"{column.heading}{paper}: {column.note}{f'; it cannot tell: {column.limits}' if column.limits else ''}"
