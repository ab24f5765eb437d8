"""Edit a 3D scene: render it along a path, edit that video, reconstruct the scene from the edited frames.

    python examples/05_scene.py [FOLDER]

Needs `pip install '.[scenes]'`. The scene may be a nerfstudio dataset (`transforms.json`), a COLMAP project or a
splat `.ply`; out come a splat, the edited dataset for any other trainer, and videos. Look around in the result with
`v2edit view FOLDER/edit`.
"""

import os
import sys
import tempfile
from pathlib import Path

import v2edit
from v2edit.scenes.primitives import write_task

STEPS = int(os.environ.get("STEPS", "50"))
FIT_STEPS = 16 * STEPS  # of the first reconstruction: 800, the default, beside 50 denoising steps


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    (folder / "scene").mkdir(parents=True)
    write_task(10, folder / "scene", "recolour")  # as `v2edit sample --scene --seed 10 --kind recolour` does

    run = v2edit.edit_scene(
        folder / "scene", "paint the orange cone blue", steps=STEPS, fit_steps=FIT_STEPS, refit_steps=FIT_STEPS // 3,
        out=folder / "edit",
    )  # fmt: skip
    assert run.edited is not None  # as it is where another program trains the scene
    print(len(run.edited), "Gaussians in", run.folder / "edited.ply")
    print("views that were held out, before and after:", run.folder / "held-out.png")


if __name__ == "__main__":
    main()
