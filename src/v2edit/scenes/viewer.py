"""A viewer of scenes in the browser, before and after an edit, on viser."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from v2edit.errors import UserError
from v2edit.runs.layout import CAMERA_PATH, EDITED_SPLAT, SOURCE_SPLAT, SPLAT_SUFFIXES
from v2edit.scenes.camera_paths import CameraPath, read_path
from v2edit.scenes.cameras import distance_of, up_of
from v2edit.scenes.formats.splats import is_splat, read_splat_file
from v2edit.scenes.gaussians import Gaussians, sh_to_colour
from v2edit.scenes.rasterise.projection import rotations
from v2edit.scenes.reading import Scene, choose_path

if TYPE_CHECKING:
    from viser import CameraHandle, GaussianSplatHandle, GuiEvent, InitialCameraConfig, ViserServer

NAMES = {"before": SOURCE_SPLAT, "after": EDITED_SPLAT}
WIPE = "before | after"
HOST, PORT = "127.0.0.1", 8080
FPS = 8  # of the path when it is played
ORBIT_FRAMES = 48  # around a splat that has no path


def serve(run: Path, port: int | None = None) -> None:
    """Serve a run folder of `v2edit scene`, or one splat file, until interrupted; without a port, on 8080 or the next
    one that is free. Raises `UserError` for a port that cannot be had."""
    if port is not None:
        _check_port(port)
    viewer = start(run, port or PORT)
    print(f"open http://localhost:{viewer.server.get_port()} in a browser; Ctrl-C ends it", flush=True)
    try:
        while True:
            viewer.advance()
            time.sleep(1 / FPS)
    except KeyboardInterrupt:
        viewer.server.stop()


def start(run: Path, port: int) -> Viewer:
    """Start the server. Raises `UserError` if there is no scene to show, or viser is not installed."""
    try:
        import viser
    except ModuleNotFoundError as missing:
        raise UserError(f"the viewer needs {missing.name}: pip install 'v2edit[scenes]'") from missing
    alone = run.is_file() or is_splat(run)
    named = {"scene": run} if alone else {name: run / file for name, file in NAMES.items()}
    files = {name: path for name, path in named.items() if alone or path.is_file()}
    if not files:
        expected = f"a run folder of v2edit scene, or a splat ({', '.join(SPLAT_SUFFIXES)})"
        raise UserError(f"there is no scene to view in {run}: give {expected}")
    splats = {name: read_splat_file(path) for name, path in files.items()}
    scenes = {name: splat.gaussians for name, splat in splats.items()}
    if run.is_dir() and (run / CAMERA_PATH).is_file():
        path = read_path(run / CAMERA_PATH, None)
    else:
        name, file = list(files.items())[-1]
        path = choose_path("orbit", Scene(file, splat=splats[name]), ORBIT_FRAMES, 512)
    # Browsers open connections ahead that they never use: each would print a traceback.
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
    return Viewer(viser.ViserServer(host=HOST, port=port, verbose=False), scenes, path)


def _check_port(port: int) -> None:
    """Raise `UserError` for a port that the server cannot listen on: viser would take another one, or wait for ever."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port is {port}, expected 1 to 65535")
    with socket.socket() as probe:
        if os.name == "posix":  # as the server does: one that has just ended is no hindrance
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"--port is {port}, which cannot be had: {error.strerror}; choose another one") from error


class Viewer:
    """Scenes in the browser: a choice of before, after, or both with a wipe between them; a slider along the camera
    path, which can be played; and the coordinates of what is clicked on, for the corners of a box, say."""

    def __init__(self, server: ViserServer, scenes: dict[str, Gaussians], path: CameraPath) -> None:
        self.server, self.path, self.scenes = server, path, scenes
        latest = list(scenes)[-1]
        self.distance = distance_of(path.cameras, scenes[latest].means.numpy())
        self.up = up_of(path.cameras)
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        server.scene.set_background_image(np.full((2, 2, 3), 24, np.uint8))
        server.scene.set_up_direction(tuple(self.up))
        self.means = {name: scene.means.numpy() for name, scene in scenes.items()}
        self.opacities = {name: scene.logit_opacities.sigmoid()[:, None].numpy() for name, scene in scenes.items()}
        self.handles = {name: _add_splat(server, name, scene) for name, scene in scenes.items()}
        both = len(scenes) > 1
        self.choice = server.gui.add_dropdown("show", [*scenes, *([WIPE] if both else [])], initial_value=latest)
        self.wipe = server.gui.add_slider("wipe at % of the width", 0, 100, 1, 50, visible=both)
        last = len(path.cameras) - 1
        self.frame = server.gui.add_slider("frame of the path", 0, max(last, 1), 1, 0, visible=last > 0)
        self.playing = server.gui.add_checkbox("play along the path", False, visible=last > 0)
        self.point = server.gui.add_text("x,y,z of a click", "click on the scene", disabled=True)
        self._move_to(server.initial_camera)
        self.choice.on_update(lambda event: self.show())
        self.wipe.on_update(self._on_wipe)
        self.frame.on_update(lambda event: event.client and self._move_to(event.client.camera))
        server.scene.on_click()(lambda event: self.locate(event.ray_origin, event.ray_direction))
        server.on_client_connect(lambda client: self._move_to(client.camera))
        self.wiped = None  # the camera and place of the wipe that the opacities are for
        self.show()

    def show(self) -> None:
        """Show what is chosen, and say which it is."""
        chosen = self.choice.value
        self.server.gui.set_panel_label(f"v2edit: {chosen}")
        if chosen != WIPE:
            self._set_opacities({})
        for name, handle in self.handles.items():
            handle.visible = chosen in (name, WIPE)

    def advance(self) -> None:
        """Go on by a frame of the path while it plays, and keep the wipe where it is on screen."""
        if self.playing.value:
            self.frame.value = (self.frame.value + 1) % len(self.path.cameras)
            for client in self.server.get_clients().values():
                with client.atomic():
                    self._move_to(client.camera)
        clients = list(self.server.get_clients().values())
        if self.choice.value == WIPE and clients:
            self.part(clients[-1].camera)

    def locate(self, origin: Sequence[float], direction: Sequence[float]) -> None:
        """Show the coordinates of what is seen along a ray, [3] both, of the scene that is shown, the latest of two."""
        scene = self.scenes.get(self.choice.value) or list(self.scenes.values())[-1]
        point = surface_point(scene, np.asarray(origin), np.asarray(direction))
        self.point.value = "nothing is there" if point is None else ",".join(f"{value:.4g}" for value in point)

    def _on_wipe(self, event: GuiEvent) -> None:
        if event.client is not None:
            self.choice.value = WIPE
            self.part(event.client.camera)

    def part(self, camera: CameraHandle) -> None:
        """Show of each scene what lies on its side of the wipe on a camera's screen."""
        place = (*camera.position, *camera.wxyz, camera.fov, camera.aspect, self.wipe.value)
        if place == self.wiped:
            return
        turn = rotation_matrix(camera.wxyz)
        shares = {}
        for name, means in self.means.items():
            across, _, depth = ((means - camera.position) @ turn).T
            across = across / np.maximum(depth, 1e-6) / (math.tan(camera.fov / 2) * camera.aspect)
            is_left = across < 2 * self.wipe.value / 100 - 1
            shares[name] = (is_left if name == "before" else ~is_left)[:, None]
        self._set_opacities(shares)
        self.wiped = place

    def _set_opacities(self, shares: dict[str, np.ndarray]) -> None:
        """Set which Gaussians of each scene are shown, bool [N, 1] by name; all of those of other names."""
        if shares or self.wiped is not None:
            for name, handle in self.handles.items():
                handle.opacities = self.opacities[name] * shares.get(name, 1.0)
        self.wiped = None

    def _move_to(self, camera: CameraHandle | InitialCameraConfig) -> None:
        """Move a camera to the frame of the path, its orbit centre at the scene's distance."""
        cameras, k = self.path.cameras, min(self.frame.value, len(self.path.cameras) - 1)
        camera.position = cameras.centres[k]
        camera.look_at = cameras.centres[k] + cameras.directions[k] * self.distance
        camera.fov = 2 * math.atan(0.5 * cameras.height / cameras.intrinsics[k, 1, 1])


def surface_point(scene: Gaussians, origin: np.ndarray, direction: np.ndarray) -> np.ndarray | None:
    """Return the point, float64 [3], behind which less than half of the light that comes along a ray begins; None where
    the ray meets less than that. Each Gaussian stands where it is densest along the ray."""
    start, along = torch.from_numpy(origin).double(), torch.from_numpy(direction).double()
    axes = rotations(scene.quats.double()) / scene.log_scales.double().exp()[:, None, :]  # space to standard deviations
    to_mean = torch.einsum("nij,ni->nj", axes, scene.means.double() - start)
    step = torch.einsum("nij,i->nj", axes, along)
    depth = (to_mean * step).sum(1) / (step * step).sum(1)
    density = (-0.5 * (to_mean - depth[:, None] * step).square().sum(1)).exp()
    order = depth.argsort()
    order = order[depth[order] > 0]
    passed = torch.cumprod(1 - (scene.logit_opacities.double().sigmoid() * density)[order], 0)
    if not (reached := passed < 0.5).any():
        return None
    return (start + depth[order][reached][0] * along).numpy()


def rotation_matrix(wxyz: np.ndarray) -> np.ndarray:
    """Return the rotation [3, 3] of a unit quaternion."""
    return rotations(torch.from_numpy(np.asarray(wxyz, np.float64))[None])[0].numpy()


def _add_splat(server: ViserServer, name: str, scene: Gaussians) -> GaussianSplatHandle:
    axes = rotations(scene.quats) * scene.log_scales.exp()[:, None, :]
    return server.scene.add_gaussian_splats(
        name,
        centers=scene.means.numpy(),
        covariances=(axes @ axes.transpose(1, 2)).numpy(),
        rgbs=sh_to_colour(scene.sh[:, 0]).clamp(0, 1).numpy(),  # viser draws no view-dependent colours
        opacities=scene.logit_opacities.sigmoid()[:, None].numpy(),
    )
