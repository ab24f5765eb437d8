"""What of a scene an edit may change: the options, and how a run that resumes gets them back."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from v2edit.errors import UserError
from v2edit.files import atomic_path

if TYPE_CHECKING:
    from v2edit.scenes.cameras import Cameras
    from v2edit.scenes.gaussians import Gaussians
    from v2edit.scenes.painting import Painted
    from v2edit.scenes.reading import Scene
    from v2edit.scenes.regions import Region

log = logging.getLogger(__name__)
REGION_FILE = "region.npz"  # in the state folder


@dataclass(frozen=True)
class RegionOptions:
    """What of the scene may change; the rest stays as it is. Without any, what the edit changes in the video."""

    mask: Annotated[str | None, arg(metavar="FOLDER|FILE", help_behavior_hint="")] = None
    """What may change is white: in a folder of images named as the scene's, of which a few are enough; or in one image,
    painted over one view (see --mask-view), from which it is carried into space."""
    mask_view: Annotated[str | None, arg(metavar="NAME|NUMBER", help_behavior_hint="")] = None
    """The view that the one image of --mask was painted over: one of the scene's images, by name, or a frame of the
    path, counted from 0 (default: the scene's image of the mask's name)."""
    box3d: Annotated[str | None, arg(metavar="X,Y,Z,X,Y,Z", help_behavior_hint="")] = None
    """Two opposite corners of the part of space that may change, in the scene's units (with an equals sign where the
    first is negative)."""

    def __post_init__(self) -> None:
        if isinstance(self.box3d, (tuple, list)):  # in Python numbers, too
            object.__setattr__(self, "box3d", ",".join(map(str, self.box3d)))
        object.__setattr__(self, "mask_view", None if self.mask_view is None else str(self.mask_view))
        if self.mask_view is not None and self.mask is None:
            raise UserError("--mask-view is the view of a mask, and there is none: give --mask FILE")

    def build(self, scene: Scene) -> Region | None:
        """Return the region of a scene, None for everywhere. Raises `UserError`, in one line, for a mask or a box that
        does not fit it."""
        from v2edit.scenes.regions import Region, parse_box

        if self.mask is None and self.box3d is None:
            return None
        region = Region(None if self.box3d is None else parse_box(self.box3d))
        if self.mask is None:
            return region
        if not Path(self.mask).is_file():
            if self.mask_view is not None:
                raise UserError(f"--mask-view is for a --mask that is one image, and {self.mask} is none")
            return _with_masks(region, Path(self.mask), scene)
        view = self._find_view(scene)
        if view is None:  # until the path is known
            return region
        assert scene.dataset is not None
        painted = _read_painted(Path(self.mask), scene.dataset.cameras[[view]])
        return replace(region, painted=replace(painted, mask=scene.dataset.undistort_mask(painted.mask, view)))

    def on_path(self, region: Region | None, scene: Scene, cameras: Cameras) -> Region | None:
        """Return the region of a scene once the cameras of its path are known, in one of which a mask may be painted.
        Raises `UserError` for a number that is none of theirs."""
        if region is None or self.mask is None or not Path(self.mask).is_file() or self._find_view(scene) is not None:
            return region
        number = int(self.mask_view or 0)
        if number >= len(cameras):
            raise UserError(f"--mask-view is {number}: the path has {len(cameras)} frames, counted from 0")
        return replace(region, painted=_read_painted(Path(self.mask), cameras[[number]]))

    def _find_view(self, scene: Scene) -> int | None:
        """Return the number of the scene's image that the mask was painted over, None for a frame of the path. Raises
        `UserError` for an unknown view."""
        from v2edit.scenes.formats.nerfstudio import plain_name

        names = () if scene.dataset is None else scene.dataset.names
        wanted = self.mask_view or Path(self.mask or "").stem
        # By the name in full first; photographs of any names get plain ones in the dataset that is made of them.
        readings: list[Callable[[str], bool]] = [
            lambda name: name == wanted,
            lambda name: wanted in (Path(name).name, Path(name).stem),
            lambda name: re.sub(r"^\d+-", "", Path(name).stem) in (plain_name(wanted), plain_name(Path(wanted).stem)),
        ]
        for reads in readings:
            found = [k for k, name in enumerate(names) if reads(name)]
            if len(found) > 1:
                listed = ", ".join(names[k] for k in found[:3])
                raise UserError(f"{wanted!r} is the name of {len(found)} views: give --mask-view in full ({listed})")
            if found:
                return found[0]
        if self.mask_view is not None and re.fullmatch(r"[0-9]{1,6}", self.mask_view):
            return None
        such = f"one of the scene's images, such as {Path(names[0]).name}, or " if names else ""
        what = f"--mask-view is {wanted!r}" if self.mask_view else f"--mask: {self.mask} is named as no view"
        raise UserError(f"{what}: expected {such}the number of a frame of the path, from 0 (--mask-view)")

    @property
    def facts(self) -> dict[str, str | None]:
        """The options for run.json."""
        view = {} if self.mask_view is None else {"mask_view": self.mask_view}
        return {"mask": self.mask and os.path.abspath(self.mask), "box3d": self.box3d, **view}


def _read_painted(path: Path, camera: Cameras) -> Painted:
    import numpy as np

    from v2edit.scenes.painting import Painted
    from v2edit.video import Video
    from v2edit.video.masks import read_mask

    picture = np.zeros((1, camera.height, camera.width, 3), np.uint8)
    mask = np.asarray(read_mask(path, Video(picture, 1), of="the view")[0])  # pyright: ignore[reportArgumentType]
    return Painted(np.ascontiguousarray(mask), camera)


def _with_masks(region: Region, folder: Path, scene: Scene) -> Region:
    """Add the masks of a folder to a region. Raises `UserError` for what is none of the scene's."""
    import numpy as np

    from v2edit.scenes.regions import Region
    from v2edit.video import Video
    from v2edit.video.masks import read_mask
    from v2edit.video.stills import IMAGES

    if scene.dataset is None:
        raise UserError(f"--mask: {scene.path} has no photographs to mask; --box3d names a part of its space")
    if not folder.is_dir():
        raise UserError(f"--mask is {folder}, expected a folder of images named as the scene's, or one image")
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMAGES}
    stems = [Path(name).stem for name in scene.dataset.names]
    views = [k for k, stem in enumerate(stems) if stem in files]
    if not views:
        raise UserError(f"--mask: no image in {folder} is named as one of the scene's, such as {stems[0]}.png")
    if len({stems[k] for k in views}) < len(views):
        shared = next(stem for stem in stems if stems.count(stem) > 1 and stem in files)
        raise UserError(f"--mask: {files[shared].name} is named as {stems.count(shared)} of the scene's images")
    pictures = [Video(scene.dataset.images[k : k + 1], 1) for k in views]  # pyright: ignore[reportArgumentType]
    masks = [read_mask(files[stems[k]], one, of="the view")[0] for k, one in zip(views, pictures, strict=True)]
    flat = [scene.dataset.undistort_mask(np.asarray(mask), k) for mask, k in zip(masks, views, strict=True)]
    return Region(region.box, np.stack(flat), scene.dataset.cameras[views])


def describe_region(region: Region | None, scene: Scene, cameras: Cameras) -> dict[str, str]:
    """Describe what of a scene may change: how much of the pictures along a path shows the `box`, of how many views
    there is a `mask`, and how much of the `scene` lies within, as far as that is known before it is reconstructed.
    Raises `UserError` for a box that no camera of the path sees."""
    if region is None:
        return {}
    found: dict[str, str] = {}
    if region.box is not None:
        shown = region.box_share(cameras).mean((1, 2))
        found["box"] = f"{100 * shown.mean():.3g} % of the path's pictures show it, {(shown > 0).sum()} of {len(shown)}"
    if region.masks is not None and scene.dataset is not None:
        found["mask"] = f"of {len(region.masks)} of the scene's {len(scene.dataset)} views"
    if region.painted is not None:
        found["mask"] = f"of one view, {100 * (region.painted.mask > 0.5).mean():.3g} % of it"
    if scene.gaussians is not None:
        found["scene"] = describe_within(region, scene.gaussians)
    elif region.box is not None and scene.dataset is not None and (points := scene.dataset.points) is not None:
        low, high = region.box
        inside = ((points.positions >= low) & (points.positions <= high)).all(1)
        found["scene"] = f"{inside.sum():,} of its {len(inside):,} points are in the box"
    return found


def describe_within(region: Region, gaussians: Gaussians) -> str:
    """Describe how much of a scene may change; warn where that is nothing."""
    count = int(region.contains(gaussians).sum())
    if not count:
        log.warning("nothing of the scene is where it may change: all that can appear there is new")
    return f"{count:,} of its {len(gaussians):,} Gaussians may change"


def save_region(region: Region | None, folder: Path) -> None:
    """Save what of a scene a run may change in its state folder."""
    import numpy as np

    if region is None:
        return
    arrays: dict[str, Any] = {"box": region.box, "masks": region.masks}
    if region.cameras is not None:
        arrays |= {"intrinsics": region.cameras.intrinsics, "poses": region.cameras.camera_to_world}
    if region.painted is not None:
        camera = region.painted.camera
        arrays |= {"painted": region.painted.mask, "lens": camera.intrinsics, "pose": camera.camera_to_world}
    with atomic_path(folder / REGION_FILE) as part, part.open("wb") as file:
        np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})


def load_region(folder: Path, facts: Mapping[str, str | None]) -> Region | None:
    """Load what `save_region` saved, by what run.json says of it. Raises `UserError` where it is gone."""
    import numpy as np

    from v2edit.scenes.cameras import Cameras
    from v2edit.scenes.painting import Painted
    from v2edit.scenes.regions import Region

    path = folder / REGION_FILE
    if not path.exists():
        if any(facts.values()):
            raise UserError(f"{path} is gone, which says what the run may change: start it again, with another -o")
        return None
    arrays = dict(np.load(path))
    box, masks = arrays.get("box"), arrays.get("masks")
    painted = None
    if (mask := arrays.get("painted")) is not None:
        painted = Painted(mask, Cameras(arrays["lens"], arrays["pose"], *mask.shape))
    cameras = None if masks is None else Cameras(arrays["intrinsics"], arrays["poses"], *masks.shape[1:])
    return Region(box, masks, cameras, painted)
