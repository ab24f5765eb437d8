"""COLMAP in process (pycolmap): features, matches, and incremental mapping to cameras and points.

Seeds are fixed, and bundles are adjusted by one thread, so that equal pictures give equal cameras on one machine;
another processor rounds otherwise, as with any optimisation. Letters: N pictures.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from v2edit.errors import UserError
from v2edit.scenes.poses.pictures import WrittenPicture

if TYPE_CHECKING:
    import pycolmap

MISSING = (
    "finding cameras takes pycolmap: pip install 'pycolmap>=4.2' (it is of v2edit's extra `scenes`), or give a dataset "
    "that has its cameras"
)
SEED = 0
MAX_FEATURES = 4096  # of a picture: COLMAP's own medium quality
FOCAL_GUESS = 1.2  # of the longer side, as COLMAP has it
# Pictures of a camera, whose lens then has COLMAP's OPENCV model, and whose principal point is found, too; fewer tell
# no more than SIMPLE_RADIAL (a focal length and one radial coefficient).
MANY = 20
MIN_MODEL = 3  # pictures
FEATURE_CHUNK, MATCH_CHUNK = 8, 64  # pictures and pairs between two reports

Report = Callable[[str, int, int], None]  # the phase, how much of it is done, of how much


def no_report(phase: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class PairStatistics:
    """What matching found: of each of P pairs its `matches`, int [P], those that its geometry explains (`inliers`, 0
    where it has none), and whether one homography does (`is_flat`, bool [P]), as where the camera turns on the spot or
    sees a plane."""

    matches: np.ndarray
    inliers: np.ndarray
    is_flat: np.ndarray


def import_pycolmap() -> Any:
    """Return the module, its log quiet. Raises `UserError` where it is missing or too old to be interrupted."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        import pycolmap
    except ImportError as error:
        raise UserError(MISSING) from error
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # glog's own prints a stack and ends without cleaning up
    if not hasattr(pycolmap, "CancellationToken"):
        raise UserError(f"{MISSING}; the one here is {pycolmap.__version__}")
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL.value)
    return pycolmap


def run_interruptibly(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run a function of pycolmap that takes a `cancellation_token`, so that Ctrl-C ends it promptly."""
    import pycolmap

    token, done, outcome = pycolmap.CancellationToken(), threading.Event(), {}

    def work() -> None:
        try:
            outcome["result"] = function(*args, cancellation_token=token, **options)
        except BaseException as error:
            outcome["error"] = error
        finally:
            done.set()

    # Not `join`: interrupted, that of Python 3.11 takes a thread for ended which is not.
    threading.Thread(target=work).start()
    try:
        while not done.wait(0.1):
            pass
    except BaseException:
        token.cancel()
        done.wait()
        raise
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def extract_features(
    database: Path, folder: Path, written: Sequence[WrittenPicture], threads: int = -1, report: Report = no_report
) -> dict[str, int]:
    """Extract SIFT features of pictures in a folder's `images` (and `masks`) into a new database; return their ids in
    it by their files, without those that have no features. Pictures of one camera share their intrinsics, which begin
    at the focal length that their files tell."""
    import pycolmap

    options = pycolmap.FeatureExtractionOptions(num_threads=threads, use_gpu=False)
    options.sift.max_num_features = MAX_FEATURES
    groups: dict[tuple[object, ...], list[WrittenPicture]] = {}
    for one in written:
        groups.setdefault(one.picture.camera, []).append(one)
    done = 0
    for group in groups.values():
        reader = pycolmap.ImageReaderOptions(existing_camera_id=_write_camera(database, folder, group))
        parts = [one.file for one in group if not one.mask], [one.file for one in group if one.mask]
        chunks = [part[k : k + FEATURE_CHUNK] for part in parts for k in range(0, len(part), FEATURE_CHUNK)]
        for names in chunks:
            # With a folder of masks, COLMAP passes over pictures that have none there.
            reader.mask_path = folder / "masks" if names[0] in parts[1] else ""
            run_interruptibly(
                pycolmap.extract_features, database, folder / "images", image_names=names, reader_options=reader,
                camera_mode=pycolmap.CameraMode.SINGLE, extraction_options=options, device=pycolmap.Device.cpu,
            )  # fmt: skip
            done += len(names)
            report("features", done, len(written))
    with open_database(database) as data:
        return {image.name: image.image_id for image in data.read_all_images()}


def _write_camera(database: Path, folder: Path, group: Sequence[WrittenPicture]) -> int:
    """Write the camera that pictures share, with COLMAP's usual lens model for so many, and return its id."""
    import pycolmap
    from PIL import Image

    with Image.open(folder / "images" / group[0].file) as picture:
        width, height = picture.size
    own, scale = group[0].picture, group[0].scale
    focal = (own.focal or FOCAL_GUESS * max(own.size)) * scale
    model = "OPENCV" if len(group) >= MANY else "SIMPLE_RADIAL"
    camera = pycolmap.Camera.create_from_model_name(0, model, focal, width, height)
    camera.has_prior_focal_length = own.focal is not None
    with open_database(database) as data:
        camera.camera_id = data.write_camera(camera)
        rig = pycolmap.Rig()
        rig.add_ref_sensor(camera.sensor_id)
        data.write_rig(rig)
    return camera.camera_id


@contextmanager
def open_database(path: Path) -> Iterator[Any]:
    """Open a COLMAP database."""
    import pycolmap

    database = pycolmap.Database.open(path)
    try:
        yield database
    finally:
        database.close()


def read_descriptors(database: Path, ids: Sequence[int]) -> list[np.ndarray]:
    """Return the features of pictures, uint8 [F, 128] each."""
    with open_database(database) as data:
        return [np.array(data.read_descriptors(k).data) for k in ids]


def match_pairs(
    database: Path,
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    threads: int = -1,
    report: Report = no_report,
) -> None:
    """Match the features of pairs of pictures, and verify each pair by its geometry."""
    import pycolmap

    pairing = pycolmap.ImportedPairingOptions(match_list_path=database.with_name("pairs.txt"))
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = SEED
    options = pycolmap.FeatureMatchingOptions(num_threads=threads, use_gpu=False)
    for start in range(0, len(pairs), MATCH_CHUNK):
        chunk = pairs[start : start + MATCH_CHUNK]
        pairing.match_list_path.write_text("".join(f"{names[i]} {names[j]}\n" for i, j in chunk), encoding="utf-8")
        run_interruptibly(
            pycolmap.match_image_pairs, database, matching_options=options, pairing_options=pairing,
            verification_options=verification, device=pycolmap.Device.cpu,
        )  # fmt: skip
        report("matching", start + len(chunk), len(pairs))


def read_pair_statistics(database: Path) -> PairStatistics:
    """Return what matching found."""
    import pycolmap

    kinds = pycolmap.TwoViewGeometryConfiguration
    flat = {int(one) for one in (kinds.PLANAR, kinds.PANORAMIC, kinds.PLANAR_OR_PANORAMIC)}
    with open_database(database) as data:
        geometries = dict(zip(*data.read_two_view_geometries(), strict=True))
        matches = {number: len(found) for number, found in zip(*data.read_all_matches(), strict=True)}
    found = [geometries.get(number) for number in matches]
    return PairStatistics(
        np.array(list(matches.values()), np.int64),
        np.array([0 if one is None else len(one.inlier_matches) for one in found], np.int64),
        np.array([one is not None and int(one.config) in flat for one in found], bool),
    )


def map_pictures(database: Path, folder: Path, count: int, report: Report) -> list[pycolmap.Reconstruction]:
    """Return the models that the pictures fall into, that of the most pictures first; [] where none begins."""
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions(num_threads=1, random_seed=SEED, min_model_size=MIN_MODEL)
    options.mapper.num_threads = 1
    options.mapper.random_seed = options.triangulation.random_seed = SEED
    registered = 2  # the first two are registered at once

    def on_image() -> None:
        nonlocal registered
        registered = min(registered + 1, count)
        report("mapping", registered, count)

    pycolmap.set_random_seed(SEED)
    out = database.with_name("models")
    out.mkdir()
    models: Mapping[int, Any] = run_interruptibly(
        pycolmap.incremental_mapping, database, folder / "images", out, options, next_image_callback=on_image
    )
    found = sorted(models.values(), key=lambda model: -model.num_reg_images())
    for model in found[:1]:
        refine(model)
    report("mapping", count, count)
    return found


def refine(model: pycolmap.Reconstruction) -> None:
    """Adjust all of a model once more, with the principal points of the cameras that many pictures tell of."""
    import pycolmap

    images = [model.images[k] for k in sorted(model.reg_image_ids())]
    used = Counter(image.camera_id for image in images)
    config = pycolmap.BundleAdjustmentConfig()
    for image in images:
        config.add_image(image.image_id)
    few = [camera for camera, count in used.items() if count < MANY]
    if len(few) == len(used):
        return
    for camera in few:
        config.set_constant_cam_intrinsics(camera)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = pycolmap.BundleAdjustmentOptions(print_summary=False, refine_principal_point=True)
    options.ceres.solver_options.num_threads = 1
    pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    model.update_point_3d_errors()
