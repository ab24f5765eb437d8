"""The library: an index that follows what happens in its folder, notes, the trash, and kinds of uploads."""

import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import PreloadedPool
from support.studio import Client, serving

from v2edit.runs import fingerprint_input
from v2edit.studio.library import Library
from v2edit.studio.notes import Note, Notes, Trash
from v2edit.video import Video, write, write_still


def make_run(folder: Path, started: str = "2026-01-01T00:00:00+00:00", **facts: Any) -> Path:
    folder.mkdir(parents=True)
    own = {"status": "done", "kind": "edit", "started": started, "finished": started, "instruction": folder.name}
    (folder / "run.json").write_text(json.dumps(own | facts))
    return folder


@pytest.fixture
def changes() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def library(tmp_path: Path, changes: list) -> Library:
    folder = tmp_path / "runs"
    folder.mkdir()
    return Library(folder, Notes(tmp_path / "notes"), lambda name, summary: changes.append((name, summary)))


def test_the_index_follows_the_folder(library, changes):
    make_run(library.folder / "a", model={"name": "m"})
    make_run(library.folder / "b", "2026-01-02T00:00:00+00:00")
    (library.folder / "none").mkdir()
    (library.folder / "none" / "run.json").write_text("{")
    (library.folder / "file").write_text("x")
    (library.folder / "link").symlink_to(library.folder / "a")
    library.scan()
    assert [run.name for run in library.all()] == ["b", "a"] and library.get("a").summary["model"] == "m"
    version = library.version
    library.scan()
    assert library.version == version and len(changes) == 2  # nothing has changed, so nothing was read
    shutil.rmtree(library.folder / "a")
    make_run(library.folder / "c")
    facts = json.loads((library.folder / "b" / "run.json").read_text())
    (library.folder / "b" / "run.json").write_text(json.dumps(facts | {"instruction": "another"}))
    library.scan()
    assert library.get("a") is None and library.get("b").summary["title"] == "another"
    assert changes[-1] == ("a", None) and library.version > version


def test_runs_of_several_have_theirs(library):
    seeds = make_run(library.folder / "many", kind="seeds", seeds=[4, 5])
    make_run(seeds / "seed-4")
    make_run(seeds / "seed-5")
    batch = library.folder / "batch"
    (batch / ".batch").mkdir(parents=True)
    (batch / ".batch" / "tasks.jsonl").write_text("")
    make_run(batch / "task")
    library.scan()
    assert library.get("many").kind == "seeds" and library.get("batch").kind == "batch"
    assert library.get("many").summary["seeds"] == ["many~seed-4", "many~seed-5"]
    assert library.get("many~seed-4").parent == "many" and library.get("batch~task").folder == batch / "task"
    assert library.names() == {"many", "batch"}


def test_notes_and_the_trash_outlive_the_studio(tmp_path):
    notes, name = Notes(tmp_path / "notes"), "x" * 250
    notes.set(name, Note(title="my title", starred=True))
    notes.set("b", Note(note="text"))
    notes.set("b", Note())
    again = Notes(tmp_path / "notes")
    assert again.get(name) == Note(title="my title", starred=True) and again.get("b") == Note()
    assert len(list((tmp_path / "notes").iterdir())) == 1
    trash, library = Trash(tmp_path / "trash"), tmp_path / "runs"
    id = trash.throw(make_run(library / "a"))
    make_run(library / "a")
    assert [one["name"] for one in Trash(tmp_path / "trash").list()] == ["a"]
    assert trash.restore(id, library) == "a-2" and trash.list() == []
    id = trash.throw(library / "a")
    trash.remove(id)
    for call in (lambda: trash.restore(id, library), lambda: trash.remove("..")):
        with pytest.raises(KeyError):
            call()


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("listed") / "runs"
    for k in range(25):
        started = f"2026-01-{k + 1:02}T00:00:00+00:00"
        make_run(folder / f"run-{k:02}", started, model={"name": f"m{k % 2}"}, instruction=f"make it {k}")
    make_run(folder / "scene", kind="scene")
    with serving(folder, PreloadedPool, devices=()) as client:
        yield client


def names(client: Client, query: str) -> list[str]:
    return [one["name"] for one in client.get(f"/runs?{query}")["runs"]]


def test_the_list_is_searched_sorted_and_cut(listed):
    whole = listed.get("/runs?limit=10")
    assert whole["total"] == 26 and len(whole["runs"]) == 10 and whole["models"] == ["m0", "m1"]
    assert names(listed, "limit=2") == ["run-24", "run-23"] and names(listed, "limit=1&offset=1") == ["run-23"]
    assert names(listed, "q=MAKE+13") == ["run-13"]
    assert names(listed, "kind=scene,seeds") == ["scene"] and names(listed, "state=failed,running") == []
    assert len(names(listed, "model=m1")) == 12 and names(listed, "sort=title&limit=1") == ["run-00"]
    assert listed.api("GET", "/runs?limit=x").error.startswith("limit")


def test_a_list_that_has_not_changed_is_not_sent_again(listed):
    answer = listed.api("GET", "/runs")
    assert listed.api("GET", "/runs", if_none_match=answer.headers["etag"]).status == 304
    assert listed.api("PATCH", "/runs/run-03", {"starred": True, "title": "the best"}).status == 200
    assert listed.api("GET", "/runs", if_none_match=answer.headers["etag"]).status == 200
    assert names(listed, "starred=true") == ["run-03"] and names(listed, "q=best") == ["run-03"]
    assert listed.api("PATCH", "/runs/run-03", {"name": "../x"}).status == 422


def test_frames_and_scenes_are_told_apart(studio: Client, tmp_path: Path):
    images = [tmp_path / f"{k}.png" for k in range(3)]
    for path in images:
        write_still(np.full((16, 24, 3), 90, np.uint8), path)
    frames = studio.upload(*images, kind="frames", name="my frames")
    assert frames["kind"] == "frames" and (frames["frames"], frames["width"]) == (3, 24)
    archive = tmp_path / "scene.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in images:
            file.write(path, f"scene/images/{path.name}")
        file.writestr("scene/transforms.json", json.dumps({"frames": []}))
        file.writestr("scene/scene.json", json.dumps({"source_prompt": "a scene"}))
    scene = studio.upload(archive)
    assert scene["kind"] == "scene" and scene["source_prompt"] == "a scene" and scene["proxy"] is None
    photo = studio.upload(images[0])
    assert photo["kind"] == "image" and photo["frames"] == 1
    with zipfile.ZipFile(tmp_path / "frames.zip", "w") as file:
        for path in images:
            file.write(path, path.name)
    assert studio.upload(tmp_path / "frames.zip")["kind"] == "frames"
    body = {"kind": "scene", "input": {"upload": photo["id"]}, "instruction": "make it blue"}
    assert studio.api("POST", "/jobs", body | {"options": {"source_prompt": "a"}}).status == 422


def test_a_run_can_be_edited_again(studio: Client, tmp_path: Path):
    folder = make_run(studio.folder / "earlier")
    write(Video(np.full((4, 16, 16, 3), 90, np.uint8), 8), folder / "edited.mp4")
    studio.wait("/runs?q=earlier", lambda one: one["total"] == 1)
    body = {"input": {"run": "earlier"}, "box": [0, 0, 8, 16]}
    assert studio.api("POST", "/masks", body).json["share"] == 0.5
    for wrong in (
        {"run": "earlier", "file": "../earlier/edited.mp4"},
        {"run": "nothing"},
        {"run": "earlier", "file": ""},
    ):
        assert studio.api("POST", "/masks", body | {"input": wrong}).status == 404


@pytest.fixture
def leaves_no_runs(studio: Client) -> Iterator[None]:
    """Runs without a video are not for the page, which other tests look at."""
    before = set(studio.folder.iterdir())
    yield
    for folder in set(studio.folder.iterdir()) - before:
        shutil.rmtree(folder)
    studio.studio.library.scan()


@pytest.mark.usefixtures("leaves_no_runs")
def test_what_a_run_was_made_of_is_found_again(studio: Client, sample: Any, tmp_path: Path):
    clip, frames = Path(shutil.copy(sample.clip, tmp_path / "my clip.mp4")), tmp_path / "frames"
    frames.mkdir()
    for k in range(3):
        write_still(np.full((16, 24, 3), 90, np.uint8), frames / f"{k}.png")
    own = studio.upload(sample.clip)["id"]
    edited = make_run(studio.folder / "edited-before") / "edited.mp4"
    write(Video(np.full((4, 16, 16, 3), 90, np.uint8), 8), edited)
    made_of = {
        "clip": clip,
        "clip-again": clip,
        "frames": frames,
        "upload": studio.studio.uploads.path(own),
        "run": edited,
    }
    for name, path in made_of.items():
        make_run(studio.folder / f"of-{name}", input=fingerprint_input(path))
    make_run(studio.folder / "of-nothing")
    studio.studio.library.scan()

    def found(name: str) -> Any:
        answer = studio.api("POST", f"/runs/of-{name}/input")
        return answer.json["input"] if answer.status == 200 else (answer.status, bool(answer.error))

    assert found("upload") == {"upload": own} and found("run") == {"run": "edited-before"}
    assert found("nothing") == found("none") == (404, True)
    copies = {name: found(name)["upload"] for name in ("clip", "clip-again", "frames")}
    assert copies["clip"] == copies["clip-again"] == found("clip")["upload"] != own
    seen = {name: studio.wait(f"/uploads/{id}", lambda one: one["state"] == "ready") for name, id in copies.items()}
    assert (seen["clip"]["name"], seen["clip"]["frames"]) == ("my clip.mp4", 5)
    assert (seen["frames"]["kind"], seen["frames"]["frames"]) == ("frames", 3)
    clip.write_bytes(clip.read_bytes() + b"x")
    assert found("clip")["upload"] == copies["clip"]  # the copy is what the file was
    assert studio.api("DELETE", f"/uploads/{copies['clip']}").status == 204
    assert found("clip") == (404, True)
    clip.unlink()
    assert found("clip") == (404, True)


def test_the_files_of_a_run_that_has_just_gone_are_not_there(studio: Client):
    """Between its end and the library's next look."""
    folder = make_run(studio.folder / "going")
    studio.studio.library.scan()
    assert studio.api("GET", "/runs/going/files/run.json").status == 200
    with studio.studio.library._looking:  # so that it does not look
        shutil.rmtree(folder)
        assert studio.api("GET", "/runs/going/files/run.json").status == 404
        assert studio.api("GET", "/runs/going").status in (200, 404)


def test_changes_of_a_note_at_the_same_time_are_all_kept(tmp_path):
    notes = Notes(tmp_path)
    changes = [{"starred": True}, {"note": "a good one"}, {"title": "The chosen one"}]
    for _ in range(30):
        notes.set("run", Note())
        threads = [threading.Thread(target=notes.change, args=("run",), kwargs=change) for change in changes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (
            notes.get("run")
            == Notes(tmp_path).get("run")
            == Note(title="The chosen one", note="a good one", starred=True)
        )
