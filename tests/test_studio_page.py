"""The studio's page in a browser: from drop to download, a painted mask, reloads and other tabs, and how it reads."""

import json
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import LOOK, PATIENCE, WIDTHS, Browser, browsing, drop, expect
from support.studio import Client, Sample, serving

from v2edit import video as videos
from v2edit.backbones import BUILT_IN
from v2edit.studio.options import ALLOWED

PAGE = Path(__file__).resolve().parent.parent / "src" / "v2edit" / "studio" / "page"
MODULES = [path for path in PAGE.glob("*.js") if 'from "./text.js"' in path.read_text()]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="  # a picture of another shape than any clip
FEW_STEPS = {"steps": "4", "guidance": "1"}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A studio of the built-in model, which alone says what its clips show."""
    with serving(tmp_path_factory.mktemp("studio") / "runs") as client:
        yield client


@pytest.fixture(scope="module")
def browser(studio: Client) -> Iterator[Browser]:
    with browsing(f"http://127.0.0.1:{studio.port}/") as started:
        yield started


@pytest.fixture(autouse=True)
def complains_of_nothing(browser: Browser) -> Iterator[None]:
    """No test may leave an error in the console, or a request to another place than the studio."""
    browser.complaints.clear()
    yield
    assert not browser.complaints and not browser.foreign


def do_not_count(page: Any) -> None:
    """Answer what edits would take at once: counting it takes seconds, and one test sees that it is."""
    cost = {"seconds": {}, "total_seconds": 1, "memory_gib": 1, "memory_parts": [], "fits": True}
    page.route("**/api/v1/estimates", lambda route: route.fulfill(json=cost))


def set_up(page: Any, sample: Sample, counts: bool = False, **options: str) -> None:
    """Drop the clip, say what should change, and set a few options."""
    if not counts:
        do_not_count(page)
    drop(page, sample.clip)
    page.get_by_label("What should change?").fill(sample.instruction)
    page.get_by_text("More settings").click()
    for name, value in (FEW_STEPS | options).items():
        control = page.locator(f"#option-{name}")
        if control.evaluate("one => one.tagName") == "SELECT":
            control.select_option(value)
        else:
            control.fill(value)
            control.blur()


def start(page: Any, studio: Client) -> Path:
    """Start the edit, wait for its result, and return the run folder."""
    page.get_by_role("button", name="Start the edit").click()
    expect(page.locator(".player canvas")).to_be_visible()
    return studio.folder / page.url.rpartition("/")[2]


@pytest.fixture(scope="module")
def run(studio: Client, sample: Sample) -> str:
    """The name of a run with two subtasks."""
    upload = studio.upload(sample.clip)
    return studio.ended(
        studio.submit(upload["id"], sample.instruction, **sample.options | {"model": BUILT_IN, "subtasks": 2})
    )["run"]


def test_an_edit_from_drop_to_download(browser, studio, sample):
    with browser.page() as page:
        set_up(page, sample, counts=True)
        shared, changed = page.locator(".pieces"), page.locator(".pieces .change").first
        expect(changed).to_be_visible()
        words = changed.locator("del").inner_text(), changed.locator("ins").inner_text()
        assert words[0] in sample.source_prompt and words[1] in sample.instruction and len(shared.inner_text()) > 40
        expect(page.locator(".cost")).to_contain_text("GiB")
        folder = start(page, studio)
        with page.expect_download() as download:
            page.get_by_role("link", name="MP4", exact=True).click()
        assert Path(download.value.path()).read_bytes() == (folder / "edited.mp4").read_bytes()
        assert download.value.suggested_filename == f"{folder.name}.mp4"
        assert "v2edit edit" in page.locator(".command").inner_text()
        expect(page.get_by_role("button", name="Play")).to_be_visible()


def test_what_is_not_painted_stays_as_it_was(browser, studio, sample):
    source = videos.read(sample.clip).frames
    side = source.shape[1]
    with browser.page() as page:
        set_up(page, sample, format="png")
        page.get_by_role("radio", name="Painted").check()
        box = page.locator(".mask-canvas").bounding_box()
        left, middle = box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"]
        page.mouse.move(left, box["y"] + 0.1 * box["height"])
        page.mouse.down()
        page.mouse.move(left, middle, steps=4)
        page.mouse.move(left, box["y"] + 0.9 * box["height"], steps=4)
        page.mouse.up()
        page.get_by_role("radio", name="Stay").check()
        folder = start(page, studio)
    edited = np.asarray([one for one in videos.read(folder / "edited").frames])
    mask = np.asarray([one for one in videos.read(folder / "mask.mp4").frames]).max(-1) > 16
    # A brush of 12 % of the height, a fifth of the width from the left, and the pixels that the edit fades out in.
    columns = np.flatnonzero(mask.any(axis=(0, 1)))
    assert columns[0] < 0.2 * side < columns[-1] < 0.45 * side and mask[:, side // 2, round(0.2 * side)].all()
    outside = slice(columns[-1] + 3, None)
    assert np.array_equal(edited[:, :, outside], np.asarray(source)[:, :, outside])
    assert not np.array_equal(edited, np.asarray(source))


def test_tabs_agree_and_a_reload_loses_nothing(browser, studio, sample):
    upload = studio.upload(sample.clip)
    job = studio.submit(
        upload["id"], sample.instruction, **sample.options | {"model": BUILT_IN, "steps": 200, "subtasks": 6}
    )
    with browser.page(f"#/jobs/{job}") as one, browser.page("#/jobs") as other:
        cards = [page.locator(f"article:has(#job-{job})") for page in (one, other)]
        for card in cards:
            expect(card.get_by_text(re.compile(r"step \d+/\d+"))).to_be_visible()
        expect(cards[0].get_by_role("img", name="What the edit looks like so far")).to_be_visible()
        one.reload()
        expect(cards[0].get_by_text(re.compile(r"step \d+/\d+"))).to_be_visible()
        cards[0].get_by_role("button", name="Stop").click()
        for card in cards:
            expect(card.locator(".state")).to_have_text("Stopped")
        cards[1].get_by_role("button", name="Remove from the list").click()
        for card in cards:
            expect(card).to_have_count(0)


def test_a_draft_survives_a_reload(browser, sample):
    with browser.page() as page:
        set_up(page, sample, subtasks="3")
        page.locator("#option-steps").press_sequentially("0")  # and stays in the field
        expect(page.locator(".cost[aria-busy=false]")).to_contain_text("GiB")
        expect(page.locator("#option-steps")).to_have_value("40")
        page.reload()
        expect(page.get_by_label("What should change?")).to_have_value(sample.instruction)
        page.get_by_text("More settings").click()
        expect(page.locator("#option-subtasks")).to_have_value("3")
        expect(page.locator("#option-steps")).to_have_value("40")


def test_a_draft_is_of_its_clip_and_starts_only_with_prompts(browser, studio, sample):
    one, other = (studio.upload(sample.clip)["id"] for _ in range(2))
    with browser.page(f"#/edit/{one}") as page:
        page.get_by_role("radio", name="Painted").check()
        page.evaluate("id => (location.hash = `#/edit/${id}`)", other)
        expect(page.get_by_role("radio", name="Everything")).to_be_checked()
        instruction = page.get_by_label("What should change?")
        expect(instruction).to_have_attribute("placeholder", "turn the sky dark")  # of which the model knows all words
        instruction.fill("frobnicate the weather")
        expect(page.get_by_role("alert")).to_have_count(1)
        expect(page.get_by_role("button", name="Start the edit")).to_be_disabled()
    browser.complaints[:] = [
        one for one in browser.complaints if "422" not in one
    ]  # the refusals, which were asked for


def test_before_and_after_are_in_step(browser, studio, run):
    """Each step of the dial shows its own picture; before and after are halves of one frame."""
    with browser.page(f"#/run/{run}") as page:
        canvas = page.locator(".player canvas")
        page.get_by_role("radio", name="After").check()
        expect(page.locator(".picture")).to_have_attribute("data-mode", "after")
        pictures: set[str] = set()
        for step, name in ((0, "source"), (1, "subtask 1 of 2"), (2, "the whole edit")):
            page.locator("#dial").fill(str(step))
            expect(page.locator(".dial")).to_contain_text(name)
            deadline = time.monotonic() + PATIENCE / 1000
            while (picture := canvas.evaluate("canvas => canvas.toDataURL()")) in pictures:  # until it is loaded
                assert time.monotonic() < deadline, f"{name} looks like another step"
                page.wait_for_timeout(50)
            pictures.add(picture)
        page.keyboard.press("Escape")
        page.locator("body").click(position={"x": 5, "y": 300})
        page.keyboard.press("ArrowRight")
        expect(canvas).to_have_attribute("data-frame", "1")
        page.keyboard.down("b")
        expect(page.locator(".picture")).to_have_attribute("data-mode", "before")
        page.keyboard.up("b")
        expect(page.locator(".picture")).to_have_attribute("data-mode", "after")


def test_again_with_fills_in_everything(browser, studio, run, sample):
    with browser.page(f"#/run/{run}") as page:
        do_not_count(page)
        page.get_by_role("button", name="Again with …").click()
        expect(page.get_by_label("What should change?")).to_have_value(sample.instruction)
        page.get_by_text("More settings").click()
        expect(page.locator("#option-steps")).to_have_value("4")
        expect(page.locator("#option-subtasks")).to_have_value("2")
        expect(page.locator("#option-seed")).to_have_value("5")


def test_a_run_of_the_command_line_finds_its_clip_again(browser, studio, sample, sample_run):
    shutil.copytree(sample_run, studio.folder / "of-the-command-line")
    studio.studio.library.scan()
    with browser.page("#/run/of-the-command-line") as page:
        do_not_count(page)
        page.get_by_role("button", name="Again with …").click()
        expect(page.get_by_role("heading", name=sample.clip.name)).to_be_visible()
        expect(page.get_by_label("What should change?")).to_have_value(sample.instruction)
        expect(page.locator(".stage video")).to_be_visible()


def test_earlier_uploads_are_taken_again_or_deleted(browser, studio, sample):
    id = studio.upload(sample.clip, name="an earlier clip.mp4")["id"]
    with browser.page("#/edit") as page:
        earlier = page.get_by_role("listitem").filter(has_text="an earlier clip.mp4")
        expect(earlier).to_contain_text("48 × 32")
        expect(earlier).to_contain_text("5 frames")
        earlier.get_by_role("button", name="an earlier clip.mp4").first.click()
        expect(page.get_by_role("heading", name="an earlier clip.mp4")).to_be_visible()
        page.get_by_role("link", name="Another clip").click()
        earlier.get_by_role("button", name="Delete an earlier clip.mp4").click()
        earlier.get_by_role("button", name="Really delete").click()
        expect(earlier).to_have_count(0)
    assert studio.api("GET", f"/uploads/{id}").status == 404


def test_nothing_jumps_when_a_job_gets_its_first_preview(browser, studio, sample):
    """Nor when what comes after is told: the place of both is there from the beginning."""
    upload = studio.upload(sample.clip)
    source = {name: upload[name] for name in ("width", "height", "thumb")}
    job = {"id": "a-job", "kind": "edit", "title": "make it blue", "state": "loading", "source": source, "notes": []}
    progress = {"text": "step 1/4", "done": 0.2, "seconds_left": 9, "then": ["writing"]}
    later = job | {"state": "running", "progress": progress, "preview": PIXEL, "preview_type": "image/gif"}
    put = """async ([job, selector]) => {
        (await import("/store.js")).putJob(job);
        return document.querySelector(selector) !== null;
    }"""
    places = """() => [...document.querySelectorAll("article > *")].map((one) => {
        const { x, y, width, height } = one.getBoundingClientRect();
        return [x, y, width, height].map(Math.round);
    })"""

    def show(one: dict[str, Any], selector: str) -> None:
        """Put the job into the page until it is shown: the server, which does not know it, may send its own list."""
        latest = time.monotonic() + PATIENCE / 1000
        while not page.evaluate(put, [one, f"article:has(#job-a-job) .preview {selector}"]):
            assert time.monotonic() < latest, f"{selector} never came"
            page.wait_for_timeout(50)

    with browser.page("#/jobs") as page:
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 860})
            show(job, "img.dim")
            before = page.evaluate(places)
            show(later, "img:not(.dim)")
            expect(page.get_by_role("img", name="What the edit looks like so far")).to_be_visible()
            expect(page.get_by_text("then writing")).to_be_visible()
            assert page.evaluate(places) == before


def test_the_box_of_a_scene_is_typed(browser, studio, tmp_path):
    with zipfile.ZipFile(tmp_path / "scene.zip", "w") as file:
        file.writestr("scene/transforms.json", '{"frames": []}')
    id = studio.upload(tmp_path / "scene.zip")["id"]
    with browser.page(f"#/edit/{id}") as page:
        page.get_by_role("radio", name="A box").check()
        for label, value in (("From x", "-2.5"), ("To z", "4")):
            page.get_by_label(label, exact=True).fill(value)
        draft = page.evaluate("sessionStorage.getItem('v2edit-draft')")
        assert json.loads(draft)["options"]["box3d"] == [-2.5, -1, -1, 1, 1, 4]
        page.get_by_role("radio", name="Everything").check()
        expect(page.get_by_label("From x", exact=True)).to_have_count(0)
        assert "box3d" not in page.evaluate("sessionStorage.getItem('v2edit-draft')")


def test_runs_are_starred_noted_deleted_and_restored(browser, studio, sample_run):
    name = "to-be-starred"
    shutil.copytree(sample_run, studio.folder / name)
    studio.studio.library.scan()
    with browser.page(f"#/run/{name}") as page, browser.page("#/gallery") as gallery:
        page.get_by_role("button", name="Star", exact=True).click()
        page.get_by_label("Note").last.fill("a good one")
        page.get_by_label("Title").last.fill("The chosen one")
        page.get_by_label("Title").last.blur()
        expect(gallery.get_by_text("The chosen one")).to_be_visible()
        gallery.get_by_label("Starred").check()
        expect(gallery.locator(".card")).to_have_count(1)
        assert studio.get(f"/runs/{name}")["note"] == "a good one"
        with browser.page() as other:  # learns of it by the event, and asks for nothing that has gone
            other.goto("about:blank")
            lists: list[Any] = []  # the second is read once the page listens
            other.on("response", lambda answer: lists.append(answer) if answer.url.endswith("/api/v1/jobs") else None)
            other.goto(f"{browser.address}#/run/{name}")
            while len(lists) < 2:
                other.wait_for_timeout(20)
            other.wait_for_timeout(500)  # what it asks for then
            expect(other.locator(".player canvas")).to_be_visible()
            page.get_by_role("button", name="Move to the trash").click()
            expect(other.get_by_text("moved to the trash, or deleted")).to_be_visible()
            page.get_by_role("button", name="Restore").first.click()
            expect(other.locator(".player canvas")).to_be_visible()
        expect(gallery.get_by_text("The chosen one")).to_be_visible()
        gallery.get_by_label("Starred").uncheck()
        gallery.get_by_role("radio", name="Trash").check()
        expect(gallery.locator(".filters")).to_have_count(0)
        gallery.get_by_role("link", name="Gallery").click()  # leads back, as the browser's own button does
        expect(gallery.get_by_text("The chosen one")).to_be_visible()
    # A player may have asked for the next piece of what had just gone.
    browser.complaints[:] = [one for one in browser.complaints if "404" not in one or f"{name}/files/" not in one]


def test_an_error_stands_where_it_belongs(browser, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with browser.page() as page:
        drop(page, broken)
        expect(page.get_by_role("alert")).to_contain_text("broken.mp4")
        expect(page.get_by_text("Drop a video here")).to_be_visible()


VIEWS = {
    "#/edit": ".drop", "#/edit/UPLOAD": ".form", "#/jobs": ".view-jobs h1, .view-jobs .empty",
    "#/run/RUN": ".player canvas", "#/gallery": ".filters", "#/compare?runs=RUN,RUN": ".compare-grid canvas",
    "#/gallery?trash=1": ".view-gallery h1",
}  # fmt: skip


def test_every_view_can_be_read_and_used(browser, studio, run, sample):
    """Names on all controls, contrast of 4.5 and more, nothing wider than the window, at each width in both schemes."""
    upload, wrong = studio.upload(sample.clip)["id"], {}

    def look(page: Any, view: str) -> None:
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 860})
            for scheme in ("dark", "light"):
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                wrong[view, width, scheme] = page.evaluate(LOOK)

    with browser.page() as page:
        for view, part in VIEWS.items():
            page.goto(browser.address + view.replace("UPLOAD", upload).replace("RUN", run))
            expect(page.locator(part).first).to_be_visible()
            page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
            look(page, view)
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_be_visible()
        look(page, "keys")
    assert not {where: found for where, found in wrong.items() if found}


def test_strings_and_options_are_those_of_the_program(browser):
    """Modules name strings that there are, and options that the server takes."""
    named = {name for path in MODULES for name in re.findall(r"(?<![.\w/])text\.([a-z][a-zA-Z.]+\w)", path.read_text())}
    missing = """async (names) => {
        const { text } = await import("/text.js");
        const find = (at, part) => (typeof at === "string" ? "" : at?.[part]);
        return names.filter((name) => name.split(".").reduce(find, text) === undefined);
    }"""
    offered = """async () => {
        const { MORE } = await import("/options.js");
        const names = (groups) => groups.flatMap(([, list]) => list.map((one) => one.name));
        return Object.entries(MORE).map(([kind, groups]) => [kind, names(groups)]);
    }"""
    with browser.page() as page:
        assert page.evaluate(missing, sorted(named)) == []
        options = page.evaluate(offered)
        for kind, names in options:
            assert set(names) <= ALLOWED[kind] and len(names) > 8
