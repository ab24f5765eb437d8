"""Runs survive any end of their process: same bytes, few steps done again, nothing left lying about."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from survival import survive
from tiny import pipeline_of

from v2edit import video
from v2edit.api import edit_video
from v2edit.api_scene import edit_scene
from v2edit.editing import EditConfig
from v2edit.scenes.config import FitConfig
from v2edit.scenes.world import write_task

STEPS, SUBTASKS = 8, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline_of("5b").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def edit(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an edit takes; its clip is of noise, so that every bit of it matters."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    video.write(frames, path, fps=8)
    config = EditConfig(steps=STEPS, subtasks=SUBTASKS)
    prompts = {"source_prompt": "a red ball on the floor", "target_prompt": "a blue cube on the floor"}
    return {"video": path, **prompts, "model": str(model), "config": config, "frames": True}


@pytest.fixture(scope="module")
def scene(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("scene")
    write_task(3, folder, "recolour")
    prompts = {"source_prompt": "a red ball on the floor", "target_prompt": "a blue cube on the floor"}
    config, fit = EditConfig(steps=STEPS, subtasks=2), FitConfig(gaussians=300, fit_steps=60, refit_steps=30)
    return {"scene": folder, **prompts, "model": str(model), "config": config, "fit": fit, "side": 32, "frames": 9}


def test_an_edit_survives_being_killed(edit, tmp_path):
    found = survive(edit_video, edit, tmp_path / "runs", 4, signal.SIGKILL, seed=0)
    assert found.ends == 4 and found.codes == {-signal.SIGKILL: 4}


def test_a_scene_edit_survives_being_killed(scene, tmp_path):
    assert survive(edit_scene, scene, tmp_path / "runs", 3, signal.SIGKILL, seed=1).ends == 3


@pytest.mark.heavy
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
@pytest.mark.parametrize("what", ["edit", "scene"])
def test_fifty_ends(what, how, tmp_path, request):
    start = edit_video if what == "edit" else edit_scene
    found = survive(start, request.getfixturevalue(what), tmp_path / "runs", 50, how, seed=2)
    print(f"\n{what}, {how.name}: {found}")
    assert found.ends == 50
