"""What of a scene an edit may change: the options, and how a run that resumes gets them back."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from v2edit.errors import UserError
from v2edit.files import atomic_path

if TYPE_CHECKING:
    from v2edit.scenes.cameras import Cameras
    from v2edit.scenes.gaussians import Gaussians
    from v2edit.scenes.reading import Scene
    from v2edit.scenes.regions import Region

log = logging.getLogger(__name__)
REGION_FILE = "region.npz"  # in the state folder


@dataclass(frozen=True)
class RegionOptions:
    """What of the scene may change; the rest stays as it is. Without any, what the edit changes in the video."""

    mask: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """A folder of images named as the scene's: what they show in white may change. A few views are enough."""
    box3d: Annotated[str | None, arg(metavar="X,Y,Z,X,Y,Z", help_behavior_hint="")] = None
    """Two opposite corners of the part of space that may change, in the scene's units (with an equals sign where the
    first is negative)."""

    def __post_init__(self) -> None:
        if isinstance(self.box3d, (tuple, list)):  # in Python numbers, too
            object.__setattr__(self, "box3d", ",".join(map(str, self.box3d)))

    def build(self, scene: Scene) -> Region | None:
        """Return the region of a scene, None for everywhere. Raises `UserError`, in one line, for a mask or a box that
        does not fit it."""
        from v2edit.scenes.regions import Region, parse_box

        if self.mask is None and self.box3d is None:
            return None
        region = Region(None if self.box3d is None else parse_box(self.box3d))
        return region if self.mask is None else _with_masks(region, Path(self.mask), scene)

    @property
    def facts(self) -> dict[str, str | None]:
        """The options for run.json."""
        return {"mask": self.mask and os.path.abspath(self.mask), "box3d": self.box3d}


def _with_masks(region: Region, folder: Path, scene: Scene) -> Region:
    import numpy as np

    from v2edit.scenes.regions import Region
    from v2edit.video import Video
    from v2edit.video.masks import read_mask
    from v2edit.video.stills import IMAGES

    if scene.dataset is None:
        raise UserError(f"--mask: {scene.path} has no photographs to mask; --box3d names a part of its space")
    if not folder.is_dir():
        raise UserError(f"--mask is {folder}, expected a folder of images named as the scene's")
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMAGES}
    stems = [Path(name).stem for name in scene.dataset.names]
    views = [k for k, stem in enumerate(stems) if stem in files]
    if not views:
        raise UserError(f"--mask: no image in {folder} is named as one of the scene's, such as {stems[0]}.png")
    masks = [read_mask(files[stems[k]], Video(scene.dataset.images[k : k + 1], 1)) for k in views]  # pyright: ignore[reportArgumentType]
    return Region(region.box, np.concatenate(masks), scene.dataset.cameras[views])


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
    with atomic_path(folder / REGION_FILE) as part, part.open("wb") as file:
        np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})


def load_region(folder: Path, facts: Mapping[str, str | None]) -> Region | None:
    """Load what `save_region` saved, by what run.json says of it. Raises `UserError` where it is gone."""
    import numpy as np

    from v2edit.scenes.cameras import Cameras
    from v2edit.scenes.regions import Region

    path = folder / REGION_FILE
    if not path.exists():
        if any(facts.values()):
            raise UserError(f"{path} is gone, which says what the run may change: start it again, with another -o")
        return None
    arrays = dict(np.load(path))
    box, masks = arrays.get("box"), arrays.get("masks")
    if masks is None:
        return Region(box)
    return Region(box, masks, Cameras(arrays["intrinsics"], arrays["poses"], *masks.shape[1:]))
