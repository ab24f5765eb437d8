"""Reading of COLMAP projects, through pycolmap."""

from __future__ import annotations

import codecs
import logging
import math
import mmap
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v2edit.errors import UserError
from v2edit.files import check_content, is_existing_file
from v2edit.scenes.cameras import from_opencv
from v2edit.scenes.dataset import Dataset, Points, View, assemble, find_files
from v2edit.scenes.distortion import Distortion
from v2edit.scenes.formats.ply import scale_colours
from v2edit.video.stills import natural_key

if TYPE_CHECKING:
    import pycolmap

log = logging.getLogger(__name__)
# Folders of a model in a project, the likeliest first; in those of numbers each is a model of its own.
MODEL_FOLDERS = ("sparse/[0-9]*", "colmap/sparse/[0-9]*", "sparse", "colmap/sparse", ".")
IMAGE_FOLDERS = ("images", ".", "input", "images_2", "images_4", "images_8")
# The distortion parameters of each known camera model, which follow the principal point, in COLMAP's order.
MODELS = {
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": ("k1",),
    "RADIAL": ("k1", "k2"),
    "OPENCV": ("k1", "k2", "p1", "p2"),
    "FULL_OPENCV": ("k1", "k2", "p1", "p2", "k3", "d1", "d2", "d3"),
    "SIMPLE_RADIAL_FISHEYE": ("k1",),
    "RADIAL_FISHEYE": ("k1", "k2"),
    "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
}
# The number of parameters of each of COLMAP's camera models by its name, in the order of its numbers.
PARAMETERS = {
    "SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8, "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12, "FOV": 5, "SIMPLE_RADIAL_FISHEYE": 4, "RADIAL_FISHEYE": 5, "THIN_PRISM_FISHEYE": 12,
    "RAD_TAN_THIN_PRISM_FISHEYE": 16, "SIMPLE_DIVISION": 4, "DIVISION": 5, "SIMPLE_FISHEYE": 3, "FISHEYE": 4,
    "EUCM": 6, "EQUIRECTANGULAR": 2,
}  # fmt: skip


def find_models(folder: Path) -> list[Path]:
    """Return the COLMAP models in a project's folder: one, or all parts into which a reconstruction fell."""
    for pattern in MODEL_FOLDERS:
        models = sorted(folder.glob(pattern), key=lambda model: natural_key(model.name)) if pattern != "." else [folder]
        if models := [model for model in models if any((model / f"cameras.{end}").is_file() for end in ("bin", "txt"))]:
            return models
    return []


def _choose_model(folder: Path) -> Path:
    """Return the model with the most images, with a note where there are several: COLMAP numbers them as they began,
    and the first may hold a few images of the capture."""
    models = find_models(folder)
    counts = [_count_images(model) for model in models]
    chosen = counts.index(max(counts))
    if len(models) > 1:
        others = ", ".join(f"{m.name}: {n}" for k, (m, n) in enumerate(zip(models, counts, strict=True)) if k != chosen)
        message = "%s holds %d models: taking %s, which has the most images, %d (left out are %s)"
        log.warning(message, models[0].parent, len(models), models[chosen].name, counts[chosen], others)
    return models[chosen]


def _count_images(model: Path) -> int:
    """Return the number of images of a model; 0 where its files do not say."""
    if (model / "images.bin").is_file():
        with (model / "images.bin").open("rb") as file:
            return int.from_bytes(file.read(8), "little")
    return len(_read_image_names(model))


def _read_image_names(model: Path) -> dict[int, bytes]:
    """Return the names of a text model's images by their ids: COLMAP ends them at the first blank. {} where there is no
    such file."""
    try:
        poses = list(_read_poses(model / "images.txt"))
    except OSError:
        return {}
    return {int(words[0]): words[9] for _, words in poses if len(words) == 10 and words[0].isdigit()}


def _read_poses(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the images of a text model with the numbers of their lines: id, rotation, translation, camera, and the name
    as one word. The line after each is of its observations, which some programs leave out."""
    after_pose = False
    for place, line in enumerate(_read_lines(path), start=1):
        words = line.strip().split(None, 9)
        if after_pose and _are_observations(words):
            after_pose = False
        elif words and not words[0].startswith(b"#"):
            after_pose = True
            yield place, words


def _are_observations(words: list[bytes]) -> bool:
    """Return whether the words of a line, of which the tenth is the rest, are numbers by threes."""
    rest = words[9].split(None, 1) if len(words) > 9 else []
    return all(map(_is_finite, words[:9] + rest[:1])) and (len(rest) == 2 if rest else len(words) % 3 == 0)


@contextmanager
def _with_points(model: Path) -> Iterator[Path]:
    """Yield a folder of the model's files, with an empty file of points where it has none, as pycolmap demands. Those
    of text are without the observations, which are not needed and which other programs leave out in part."""
    end = ".bin" if (model / "cameras.bin").is_file() else ".txt"
    points = model / f"points3D{end}"
    if not (model / f"images{end}").is_file():
        raise UserError(f"the COLMAP model {model} has no images{end}")
    if end == ".bin" and points.is_file():
        yield model
        return
    with tempfile.TemporaryDirectory() as name:
        for part in ("cameras", "images", "rigs", "frames"):
            if (model / f"{part}{end}").is_file():
                shutil.copy(model / f"{part}{end}", name)
        if end == ".bin":
            (Path(name) / points.name).write_bytes(bytes(8))
        else:
            (Path(name) / "cameras.txt").write_bytes(_camera_lines(model / "cameras.txt"))
            (Path(name) / "images.txt").write_bytes(_pose_lines(model / "images.txt"))
            (Path(name) / points.name).write_bytes(_point_lines(points) if points.is_file() else b"")
        yield Path(name)


def _camera_lines(path: Path) -> bytes:
    """Return the cameras of a text model. Raises `UserError` for one that COLMAP cannot have written."""
    lines = []
    for place, line in enumerate(_read_lines(path), start=1):
        words = line.split()
        if words and not words[0].startswith(b"#"):
            kind = words.pop(1).decode(errors="replace") if len(words) > 1 else ""
            if kind not in PARAMETERS:
                raise UserError(f"{path}: line {place} has the camera model {kind[:40]!r}, which COLMAP does not have")
            _check_numbers(path, place, words, len(words))
            if (count := len(words) - 3) != PARAMETERS[kind]:
                raise UserError(f"{path}: line {place} has {count} parameters, expected {PARAMETERS[kind]} of {kind}")
            lines.append(line + b"\n")
    return b"".join(lines)


def _pose_lines(path: Path) -> bytes:
    """Return the images of a text model without their observations."""
    lines = []
    for place, words in _read_poses(path):
        _check_numbers(path, place, words, 9)
        lines.append(b" ".join(words) + b"\n\n")
    return b"".join(lines)


def _point_lines(path: Path) -> bytes:
    """Return the points of a text model without their observations, their colours as bytes have them."""
    points = []
    for place, line in enumerate(_read_lines(path), start=1):
        words = line.split(None, 7)[:7]
        if words and not words[0].startswith(b"#"):
            _check_numbers(path, place, words, 7)
            points.append(words)
    if not points:
        return b""
    is_whole = all(word.lstrip(b"-").isdigit() for words in points for word in words[4:])
    values = np.array([[float(word) for word in words[4:]] for words in points])
    colours = np.rint(scale_colours(values, "uchar" if is_whole else "float", path) * 255).astype(int)
    rows = zip(points, colours, strict=True)
    return b"".join(b" ".join([*words[:4], *(b"%d" % one for one in colour), b"-1\n"]) for words, colour in rows)


def _read_lines(path: Path) -> list[bytes]:
    """Read the lines of a text file, without a byte order mark at its front."""
    content = path.read_bytes()
    if content:  # which may be none: of points
        check_content(path, content[:64], "model")
    return content.removeprefix(codecs.BOM_UTF8).splitlines()


def _check_numbers(path: Path, place: int, words: list[bytes], count: int) -> None:
    """Raise `UserError` where a line does not begin with so many finite numbers."""
    if wrong := [word for word in words[:count] if not _is_finite(word)]:
        raise UserError(
            f"{path}: line {place} has {wrong[0].decode(errors='replace')[:40]!r}, expected a finite number"
        )
    if len(words) < count:
        raise UserError(f"{path}: line {place} has {len(words)} words, expected {count} at least")


def _is_finite(word: bytes) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _check_counts(model: Path) -> None:
    """Raise `UserError` where a binary file's counts exceed its size: COLMAP would read on for years, and take
    uninitialised memory for what is missing."""
    ends = {
        "cameras.bin": _cameras_end,
        "images.bin": _images_end,
        "points3D.bin": _points_end,
        "rigs.bin": _rigs_end,
        "frames.bin": _frames_end,
    }
    for name, walk in ends.items():
        path = model / name
        if path.is_file():
            end, size = 1, path.stat().st_size
            if size:
                with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    check_content(path, data[:64], "model")
                    try:
                        end = walk(data)
                    except (struct.error, ValueError, IndexError, OverflowError):  # past the end, or a name without one
                        end = size + 1
            if end > size:
                raise UserError(f"cannot read the COLMAP model {model}: {name} says it holds more than it does")


# COLMAP's binary files begin with a count; their records have fixed fields and lists of variable length.
def _cameras_end(data: mmap.mmap) -> int:
    at, sizes = 8, list(PARAMETERS.values())
    for _ in range(struct.unpack_from("<Q", data)[0]):
        number = struct.unpack_from("<i", data, at + 4)[0]  # after the id
        if number not in range(len(sizes)):
            break  # a later COLMAP's or none at all: what COLMAP says of it follows
        at += 24 + 8 * sizes[number]
    return at


def _images_end(data: mmap.mmap) -> int:
    at = 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        name_end = data.find(b"\0", at + 64)  # after id, pose and camera
        if name_end < 0:
            raise ValueError
        at = name_end + 9 + 24 * struct.unpack_from("<Q", data, name_end + 1)[0]
    return at


def _points_end(data: mmap.mmap) -> int:
    at = 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        at += 51 + 8 * struct.unpack_from("<Q", data, at + 43)[0]
    return at


def _rigs_end(data: mmap.mmap) -> int:
    at = 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        sensors = struct.unpack_from("<I", data, at + 4)[0]
        at += 8 + 8 * (sensors > 0)  # the first is the reference, without a pose
        for _ in range(sensors - 1):
            at += 9 + 56 * data[at + 8]
    return at


def _frames_end(data: mmap.mmap) -> int:
    at = 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        at += 68 + 16 * struct.unpack_from("<I", data, at + 64)[0]
    return at


def read_colmap(folder: Path, side: int | None = None) -> Dataset:
    """Read the dataset of a COLMAP project, in COLMAP's world, views in the natural order of their names; images in
    `images/`. Raises `UserError` for what is wrong with it, in one line."""
    from PIL import Image  # noqa: F401 (before pycolmap, whose zlib crashes Pillow's PNG decoder)

    try:
        import pycolmap
    except ModuleNotFoundError as missing:
        raise UserError(f"COLMAP folders need {missing.name}: pip install 'v2edit[scenes]'") from missing
    model = _choose_model(folder)
    _check_counts(model)
    try:
        with _with_points(model) as complete:
            scene = pycolmap.Reconstruction(str(complete))
    except UserError:
        raise
    except Exception as error:  # pycolmap raises whatever its C++ did
        reason = "its files are damaged or incomplete, or not of one COLMAP model"
        raise UserError(f"cannot read the COLMAP model {model}: {reason}") from error
    images = _list_images(scene, model)
    files = _find_images(folder, [name for name, _ in images])
    views = []
    for (name, image), file in zip(images, files, strict=True):
        camera = scene.cameras[image.camera_id]
        lens = camera.model_name
        if lens not in MODELS:
            raise UserError(f"{model}: cannot read the camera model {lens}; undistort with colmap image_undistorter")
        distortion = camera.params[len(camera.params) - len(MODELS[lens]) :]
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().matrix()
        if not image.cam_from_world().rotation.quat.any():
            raise UserError(f"the COLMAP model {model}: the pose of {name} has no rotation, 0 0 0 0")
        views.append(
            View(
                name=name,
                image=file,
                mask=None,
                intrinsics=np.array(camera.calibration_matrix()),
                size=(camera.height, camera.width),
                distortion=Distortion(**dict(zip(MODELS[lens], distortion, strict=True)), fisheye="FISHEYE" in lens),
                camera_to_world=from_opencv(pose),
            )
        )
    if not views:
        raise UserError(f"the COLMAP model {model} has no image with a pose")
    points = None
    if len(scene.points3D):
        positions = np.array([point.xyz for point in scene.points3D.values()])
        colours = np.array([point.color for point in scene.points3D.values()], np.uint8)
        finite = np.isfinite(positions).all(1)
        points = Points(positions[finite], colours[finite]) if finite.any() else None
    return assemble(views, model, side, points=points)


def _find_images(folder: Path, names: list[str]) -> list[Path]:
    """Return the files of images in the first of a project's folders that holds any; in the likeliest one if none does.
    A warning tells of smaller copies, as the datasets of Mip-NeRF 360 have them."""
    for name in IMAGE_FOLDERS:
        files = find_files(folder / name, names)
        if any(map(is_existing_file, files)):
            if name.startswith("images_"):
                log.warning("%s has none of its images in images/: taking the smaller ones in %s/", folder, name)
            return files
    return [folder / IMAGE_FOLDERS[0] / name for name in names]


def _list_images(scene: pycolmap.Reconstruction, model: Path) -> list[tuple[str, pycolmap.Image]]:
    """Return the images that have a pose with their names, in natural order. Raises `UserError` for no UTF-8."""
    names = {} if (model / "images.bin").is_file() else _read_image_names(model)
    try:
        images = [(names[k].decode() if k in names else image.name, image) for k, image in scene.images.items()]
    except UnicodeDecodeError as error:
        raise UserError(f"the COLMAP model {model} names an image in no UTF-8") from error
    return sorted(
        ((name, image) for name, image in images if image.has_pose), key=lambda one: (natural_key(one[0]), one[0])
    )
