"""A viewer of scenes in the browser, before and after an edit, on viser."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from v2edit.errors import UserError
from v2edit.runs.layout import EDITED_SPLAT, SOURCE_SPLAT
from v2edit.scenes.camera_paths import read_path
from v2edit.scenes.cameras import distance_of, up_of
from v2edit.scenes.formats.ply import read_splat
from v2edit.scenes.gaussians import Gaussians, sh_to_colour
from v2edit.scenes.rasterise.projection import rotations

if TYPE_CHECKING:
    from viser import ViserServer

NAMES = {"before": SOURCE_SPLAT, "after": EDITED_SPLAT}
PATH = "camera_path.json"


def serve(run: Path, port: int) -> None:
    """Serve a run folder of `v2edit scene`, or one splat file, until interrupted."""
    server = start(run, port)
    print(f"open http://localhost:{server.get_port()} in a browser; Ctrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        server.stop()


def start(run: Path, port: int) -> ViserServer:
    """Start the server: a switch between before and after, and a slider along the path. Raises `UserError` if there is
    no scene to show, or viser is not installed."""
    try:
        import viser
    except ModuleNotFoundError as missing:
        raise UserError(f"the viewer needs {missing.name}: pip install 'v2edit[scenes]'") from missing
    named = {"scene": run} if run.is_file() else {name: run / file for name, file in NAMES.items()}
    files = {name: path for name, path in named.items() if path.is_file()}
    if not files:
        raise UserError(f"there is no scene to view in {run}: give a run folder of v2edit scene, or a splat .ply")
    scenes = {name: read_splat(path) for name, path in files.items()}
    server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
    handles = {name: _add_splat(server, name, scene) for name, scene in scenes.items()}
    latest = list(handles)[-1]
    switch = server.gui.add_button_group("show", list(handles))

    def show_only(name: str) -> None:
        for title, handle in handles.items():
            handle.visible = title == name

    switch.on_click(lambda _: show_only(switch.value))
    show_only(latest)
    if run.is_dir() and (run / PATH).is_file():
        cameras = read_path(run / PATH, None).cameras
        distance = distance_of(cameras, scenes[latest].means.numpy())
        server.scene.set_up_direction(tuple(up_of(cameras)))
        slider = server.gui.add_slider("along the path", 0, len(cameras) - 1, 1, 0)

        def move_to(camera: viser.CameraHandle | viser.InitialCameraConfig, k: int) -> None:
            """Move a client's camera to the path's, its orbit centre at the scene's distance."""
            camera.position = cameras.centres[k]
            camera.look_at = cameras.centres[k] + cameras.directions[k] * distance
            camera.fov = 2 * math.atan(0.5 * cameras.height / cameras.intrinsics[k, 1, 1])

        move_to(server.initial_camera, 0)
        slider.on_update(lambda event: event.client and move_to(event.client.camera, slider.value))
    return server


def _add_splat(server: ViserServer, name: str, scene: Gaussians):
    axes = rotations(scene.quats) * scene.log_scales.exp()[:, None, :]
    return server.scene.add_gaussian_splats(
        name,
        centers=scene.means.numpy(),
        covariances=(axes @ axes.transpose(1, 2)).numpy(),
        rgbs=sh_to_colour(scene.sh[:, 0]).clamp(0, 1).numpy(),  # viser draws no view-dependent colours
        opacities=scene.logit_opacities.sigmoid()[:, None].numpy(),
    )
