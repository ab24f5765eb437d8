"""Reasons why no cameras were found, in one line each, by what of the pictures did match."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.config import MIN_PICTURES
from v2edit.scenes.dataset import list_names
from v2edit.scenes.poses.mapping import PairStatistics
from v2edit.scenes.poses.pictures import WrittenPicture

log = logging.getLogger(__name__)
MIN_KEPT = 0.01  # of a picture by its mask
MIN_SHARE = 0.5  # of the pictures: no more than that, which fit together, are no scene of theirs
MIN_FEATURES = 80  # of the middle picture
BLURRED = 0.5  # of the middle picture, as `pictures.measure_blur` has it
MIN_POINTS = 100  # of a model: fewer fit any cameras by chance
MANY_MATCHES, MOVING = 60, 0.6  # matches of a pair; the share of them that fit a still world
FLAT = 0.85  # the share of pairs that one homography explains
MIN_PARALLAX = 1.0  # degrees between rays to a point, of the middle point


def check_count(source: Path, count: int, left_out: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
    """Raise `UserError` for too few pictures; `left_out`: names of others, by why."""
    if count < MIN_PICTURES:
        others = "; ".join(f"{list_names(names)} left out, {why}" for why, names in left_out.items())
        raise UserError(
            f"{source} has {count} picture{'s' * (count != 1)}{others and f' ({others})'}: to find cameras takes "
            f"{MIN_PICTURES} at least, and 30 or more from all around are better"
        )


def check_masks(source: Path, written: Sequence[WrittenPicture]) -> None:
    """Raise `UserError` where masks leave hardly anything of most pictures; warn of those of which they do."""
    bare = [one.picture.name for one in written if one.kept < MIN_KEPT]
    if len(bare) > len(written) / 2:
        raise UserError(
            f"the masks of {source} leave nothing of {len(bare)} of its {len(written)} pictures: what is black in a "
            "mask does not count, what is white does"
        )
    if bare:
        log.warning("%d of %d pictures are masked out whole: %s", len(bare), len(written), list_names(bare))


def check_features(source: Path, written: Sequence[WrittenPicture], counts: Sequence[int]) -> None:
    """Raise `UserError` where the pictures show too little to match; `counts` are the features of those with any."""
    features = int(np.median([*counts, *[0] * (len(written) - len(counts))]))
    if features < MIN_FEATURES:
        raise UserError(f"{_too_blurred(source, written)}: {features} features in the middle one; {ADVICE_SHARP}")


ADVICE_SHARP = "take sharp ones, in more light, of things with texture"


def _too_blurred(source: Path, written: Sequence[WrittenPicture]) -> str:
    if _is_blurred(written):
        return f"the pictures of {source} are too blurred to find their cameras"
    return f"the pictures of {source} show too little texture to find their cameras"


def _is_blurred(written: Sequence[WrittenPicture]) -> bool:
    return float(np.median([one.blur for one in written])) > BLURRED


def check_pairs(source: Path, pairs: PairStatistics) -> None:
    """Raise `UserError` where pictures match and one homography explains nearly all of their pairs."""
    verified = pairs.inliers > 0
    if verified.sum() >= MIN_PICTURES - 1 and pairs.is_flat[verified].mean() > FLAT:
        raise UserError(_turns(source))


def _turns(source: Path) -> str:
    return (
        f"the camera of {source} only turns on the spot, or sees nothing but a flat surface: that tells no depth; walk "
        "around what you show"
    )


def check_model(
    source: Path,
    written: Sequence[WrittenPicture],
    pairs: PairStatistics,
    sizes: Sequence[int],
    points: int,
    parallax: float,
    cuts: Sequence[float] = (),
) -> None:
    """Raise `UserError` where the largest of the models, of so many pictures each (`sizes`), is no scene of the
    pictures; it has so many `points`; `parallax` is that of their middle one, in degrees, `cuts` the times in seconds
    at which a video is cut."""
    count = len(written)
    if sizes and sizes[0] >= MIN_PICTURES and sizes[0] > MIN_SHARE * count and points >= MIN_POINTS:
        if parallax < MIN_PARALLAX:
            raise UserError(_turns(source))
        return
    if cuts:
        times = ", ".join(f"{time:.1f} s" for time in cuts[:3]) + " …" * (len(cuts) > 3)
        raise UserError(f"{source} has cuts, at {times}, and its shots do not fit together: give a video of one shot")
    if sum(size >= MIN_PICTURES for size in sizes) > 1:
        parts = ", ".join(map(str, sizes[:4]))
        raise UserError(
            f"the pictures of {source} fall into {len(sizes)} parts that do not fit together, of {parts} of {count} "
            "pictures: take some that join them, or give one part alone"
        )
    matches, inliers = _matched(pairs)
    if len(matches) >= count - 1 and (still := float(np.median(inliers / matches))) < MOVING:
        raise UserError(
            f"what {source} shows moves from picture to picture, or repeats itself: only {still:.0%} of the matches "
            "fit a world that stands still; mask it (masks/), or keep it still"
        )
    if _is_blurred(written):
        raise UserError(f"{_too_blurred(source, written)}: {ADVICE_SHARP}")
    fit = sizes[0] if sizes and points >= MIN_POINTS else 0
    raise UserError(
        f"the pictures of {source} overlap too little: {fit} of {count} fit together; take more, each of which shows "
        "most of what the one before it shows"
    )


def _matched(pairs: PairStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Return the matches and inliers of the pairs with many matches."""
    many = pairs.matches >= MANY_MATCHES
    return pairs.matches[many], pairs.inliers[many]
