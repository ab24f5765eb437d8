"""Scenes and several seeds through the studio, from upload to result, and the box of a scene in 3D."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.browser import PATIENCE, THREE_D, Browser, browsing
from support.captures import arc, photograph, write_photos
from support.studio import Client, Sample, serving

from v2edit import video as videos
from v2edit.backbones import BUILT_IN
from v2edit.cli.app import main
from v2edit.scenes.formats.splats import read_splat

pytestmark = pytest.mark.heavy
INSTRUCTION = "make the orange ball green"
OPTIONS = {"quality": "draft", "steps": 4, "frames": 5, "side": 48}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(tmp_path_factory.mktemp("scenes") / "runs") as client:
        yield client


@pytest.fixture(scope="module")
def browser(studio: Client) -> Iterator[Browser]:
    with browsing(f"http://127.0.0.1:{studio.port}/", *THREE_D) as started:
        yield started


@pytest.fixture(scope="module")
def run(studio: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run of a dataset that was dropped as a .zip."""
    folder = tmp_path_factory.mktemp("dataset")
    assert main(["sample", "--scene", "--seed", "3", "--kind", "recolour", "-o", str(folder / "scene")]) == 0
    upload = studio.upload(Path(shutil.make_archive(str(folder / "scene"), "zip", folder, "scene")))
    assert upload["kind"] == "scene" and upload["source_prompt"] and upload["splat"] is None
    body = {"kind": "scene", "input": {"upload": upload["id"]}, "instruction": INSTRUCTION, "options": OPTIONS}
    return studio.ended(studio.api("POST", "/jobs", body).json["id"])["run"]


def colours(browser: Browser, shot: Path, view: str) -> np.ndarray:
    """Show a scene in 3D and return its picture, int [H, W, 3]."""
    with browser.page(view, width=800) as page:
        space = page.locator(".space")
        page.locator(".space[data-loaded=true]").wait_for(timeout=PATIENCE)
        space.screenshot(path=str(shot))
    assert not browser.foreign and not [one for one in browser.complaints if "GPU stall" not in one]
    return videos.read(shot).frames[0].astype(int)


def test_a_dataset_becomes_an_edited_scene(browser: Browser, studio: Client, run: str, tmp_path: Path) -> None:
    facts = studio.get(f"/runs/{run}")
    assert facts["kind"] == "scene" and facts["state"] == "done" and facts["media"]["splat_before"]
    splat = studio.api("GET", f"/runs/{run}/download?format=ply")
    assert splat.body == (studio.folder / run / "edited.ply").read_bytes()
    assert studio.ask("GET", facts["thumb"]).status == 200
    picture = colours(browser, tmp_path / "shot.png", f"#/run/{run}")
    half = picture.shape[1] // 2  # before on the left of the wipe, after on its right
    green = (picture[..., 1] > picture[..., 0] + 40) & (picture[..., 1] > picture[..., 2] + 40)
    assert green[:, half:].sum() > 10 * green[:, :half].sum() and green.sum() > 100


def test_an_edit_stays_in_its_box(browser: Browser, studio: Client, run: str, tmp_path: Path) -> None:
    """The box of a splat is chosen and seen in 3D; what lies outside it is kept."""
    source = studio.folder / run / "scene.ply"
    upload = studio.upload(source)
    assert studio.ask("GET", upload["splat"]).body == source.read_bytes()
    with browser.page(f"#/edit/{upload['id']}", width=1280) as page:
        page.locator(".space[data-loaded=true]").wait_for(timeout=PATIENCE)
        page.get_by_role("radio", name="A box").check()
        edges = page.locator(".box-edges path")
        page.locator(".box-edges path[d^=M]").wait_for(timeout=PATIENCE, state="attached")
        first = edges.get_attribute("d")
        assert first is not None and first.count("M") == 12  # all its edges are before the camera
        page.get_by_label("To z", exact=True).fill("9")
        page.locator(f".box-edges path:not([d='{first}'])").wait_for(timeout=PATIENCE, state="attached")
        text = page.evaluate("sessionStorage.getItem('v2edit-draft')")
    box = np.array(json.loads(text)["options"]["box3d"], float).reshape(2, 3)
    assert box[1, 2] == 9 and (box[0] < box[1]).all()
    options = OPTIONS | {
        "box3d": box.reshape(-1).tolist(),
        "source_prompt": studio.get(f"/runs/{run}")["prompts"]["source"],
    }
    body = {"kind": "scene", "input": {"upload": upload["id"]}, "instruction": INSTRUCTION, "options": options}
    told = studio.api("POST", "/estimates", body).json
    assert told["limits"]["box"]
    job = studio.ended(studio.api("POST", "/jobs", body).json["id"])
    assert re.search(r"--box3d[ =]", job["command"])
    places = [read_splat(studio.folder / job["run"] / name).means.numpy() for name in ("scene.ply", "edited.ply")]
    before, after = places[0], places[1][: len(places[0])]
    within = ((before >= box[0]) & (before <= box[1])).all(1)
    moved = (before != after).any(1)
    assert 0 < within.sum() < len(within) and moved[within].any()
    assert moved[~within].mean() < 0.1  # invisible ones alone, which may be taken for what is new in the box
    facts = studio.get(f"/runs/{job['run']}")
    assert facts["settings"]["local"]["box3d"]


def test_photographs_become_a_scene(browser: Browser, studio: Client, tmp_path: Path) -> None:
    """Pictures that were dropped are edited as a video or, where one says so, as a scene whose cameras are found."""
    photos = write_photos(tmp_path / "photos", photograph(arc(8)))
    upload = studio.upload(*sorted(photos.iterdir()), kind="frames", name="photos")
    assert upload["kind"] == "frames" and upload["proxy"]
    with browser.page(f"#/edit/{upload['id']}", width=1280) as page:
        page.get_by_label(re.compile("pictures of a 3D scene")).check()
        page.get_by_label("Camera path").wait_for(state="attached", timeout=PATIENCE)
        assert json.loads(page.evaluate("sessionStorage.getItem('v2edit-draft')"))["kind"] == "scene"
    options = OPTIONS | {"source_prompt": "a room", "target_prompt": "a green room"}
    body = {"kind": "scene", "input": {"upload": upload["id"]}, "instruction": "paint it", "options": options}
    run = studio.get(f"/runs/{studio.ended(studio.api('POST', '/jobs', body).json['id'])['run']}")
    assert run["kind"] == "scene" and run["media"]["splat_after"]
    image = studio.upload(next(photos.iterdir()))
    refused = studio.api("POST", "/jobs", body | {"input": {"upload": image["id"]}})
    assert refused.status >= 400 and "is a image" not in refused.error and "edits a scene" in refused.error


def test_several_seeds_are_a_group(studio: Client, sample: Sample) -> None:
    upload = studio.upload(sample.clip)
    job = studio.ended(
        studio.submit(upload["id"], sample.instruction, **sample.options | {"model": BUILT_IN, "seeds": 2})
    )
    run = studio.wait(f"/runs/{job['run']}", lambda one: one["state"] == "done")
    assert (
        run["kind"] == "seeds" and run["media"]["sheet"] and run["seeds"] == [f"{run['name']}~seed-{k}" for k in (5, 6)]
    )
    studio.wait(f"/runs?parent={run['name']}", lambda one: [k["state"] for k in one["runs"]] == ["done", "done"])
    files = [studio.folder / run["name"] / f"seed-{seed}" / "edited.mp4" for seed in (5, 6)]
    assert files[0].read_bytes() != files[1].read_bytes()
    child = studio.get(f"/runs/{run['seeds'][1]}")
    assert child["parent"] == run["name"] and studio.ask("GET", child["media"]["edited"]).body == files[1].read_bytes()
