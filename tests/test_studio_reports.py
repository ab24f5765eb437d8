"""Reports in the studio: a page of anybody's runs in its frame, sees its own files, and reaches nothing else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.browser import Browser, browsing
from support.processes import PreloadedPool
from support.studies import make_report, make_runs
from support.studio import Client, serving

from v2edit.video import Video, write, write_still

TOKEN = "a-token-of-many-letters"
# Each line tries something; what comes of it is written into the page. A promise that is refused is "no".
HOSTILE = """<!doctype html><title>report</title><body><script>
const tries = {
  runs: () => fetch("/api/v1/runs").then((answer) => answer.text()),
  blind: () => fetch("/api/v1/jobs", { method: "POST", mode: "no-cors", body: "{}" }),
  own: () => fetch("run.json").then((answer) => answer.text()),
  beacon: () => navigator.sendBeacon("/api/v1/jobs", "{}") || Promise.reject(),
  events: () => new Promise((onopen, onerror) => Object.assign(new EventSource("/api/v1/events"), { onopen, onerror })),
  parent: () => parent.document.body.innerHTML,
  top: () => (parent.location.href = "/login"),
  cookie: () => document.cookie,
  storage: () => localStorage.length,
  window: () => window.open("/") || Promise.reject(),
  module: () => import("/api.js"),
  thumb: () => load("img", "/api/v1/runs/OTHER/files/picture.png"),
  other: () => load("img", "../../OTHER/TOKEN/picture.png"),
  hidden: () => load("img", ".bench/picture.png"),
  linked: () => load("img", "link.png"),
  frame: () => load("iframe", "/index.html").then((one) => one.contentDocument.body.innerHTML),
  picture: () => load("img", "inner/picture.png"),
  film: () => load("video", "clip.mp4"),
};
const load = (tag, src) => new Promise((yes, no) => {
  const one = document.createElement(tag);
  one.onload = one.onloadeddata = () => yes(one);
  one.onerror = no;
  one.src = src;
  document.body.append(one);
});
const late = () => new Promise((yes, no) => setTimeout(no, 4000));
(async () => {
  const found = {};
  await Promise.all(Object.entries(tries).map(async ([name, act]) => {
    const done = Promise.resolve().then(act);
    found[name] = await Promise.race([done, late()]).then(() => "yes", () => "no");
  }));
  document.body.dataset.found = JSON.stringify(found);
})();
</script>"""


PATHS = [
    "none.html", ".bench/picture.png", "link.png", "run.json.txt", "inner/page.html", "inner", "none/", ".bench/",
    "linked/", "../", "", "../bench-of-methods/clip.mp4", "..%2fclip.mp4", "%2fetc%2fpasswd", "inner%2f..%2fclip.mp4",
    "clip.mp4%00.png", "inner//picture.png", "//clip.mp4",
]  # fmt: skip


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A studio with a true report and a hostile one, beside another run with a picture."""
    folder = tmp_path_factory.mktemp("reports") / "runs"
    other = make_runs(folder, ("make it lighter",))[0]
    report = folder / make_report(folder)
    (report / "inner").mkdir()
    (report / "linked").symlink_to("inner")
    picture = np.full((16, 16, 3), 200, np.uint8)
    for place in (report / "inner", report / ".bench", folder / other):
        write_still(picture, place / "picture.png")
    (report / "link.png").symlink_to(folder / other / "picture.png")
    write(Video(np.full((3, 16, 16, 3), 90, np.uint8), 8), report / "clip.mp4")
    (report / "run.json.txt").write_text("text")
    (report / "inner" / "page.html").write_text("<script>1</script>")
    (report / "hostile.html").write_text(HOSTILE.replace("OTHER", other))
    with serving(folder, PreloadedPool, devices=()) as client:
        yield client


@pytest.fixture(scope="module")
def browser(studio: Client) -> Iterator[Browser]:
    with browsing(f"http://127.0.0.1:{studio.port}/") as started:
        yield started


def test_a_report_is_shown_in_its_frame(browser: Browser, studio: Client) -> None:
    with browser.page("#/run/bench-of-methods") as page:
        page.get_by_role("link", name="Open report.html").click()
        frame = page.frame_locator(".report iframe")
        frame.get_by_role("heading", name="a report").wait_for()
        canvas = frame.locator("#films canvas").last
        assert page.evaluate("document.querySelector('.report iframe').contentDocument") is None
        drawn = "one => one.getContext('2d').getImageData(5, 5, 1, 1).data[0]"
        canvas.scroll_into_view_if_needed()
        for _ in range(600):
            if abs(canvas.evaluate(drawn) - 120) < 12:  # the film within the page is drawn
                break
            page.wait_for_timeout(50)
        else:
            raise AssertionError("the report's film is not drawn")
    assert not browser.complaints and not browser.foreign


def test_a_hostile_report_reaches_its_own_files_alone(browser: Browser, studio: Client) -> None:
    before = studio.get("/jobs")
    answered: list[tuple[str, str]] = []
    with browser.page("#/gallery") as page:
        page.on("response", lambda answer: answered.append((answer.request.method, answer.url)))
        page.goto(address := browser.address + "#/report/bench-of-methods?page=hostile.html")
        body = page.frame_locator(".report iframe").locator("body[data-found]")
        body.wait_for(state="attached")
        found = body.evaluate("one => JSON.parse(one.dataset.found)")
        assert page.url == address and page.locator("header.top").is_visible()
    # A beacon is only queued where it says yes: it must not have got an answer.
    assert {name for name, got in found.items() if got == "yes"} - {"beacon"} == {"picture", "film"}, found
    assert answered and not [url for method, url in answered if method != "GET"]
    assert studio.get("/jobs") == before
    assert browser.complaints  # the policy's refusals
    browser.complaints.clear()


def test_addresses_of_reports_are_signed_and_lead_nowhere_else(studio: Client) -> None:
    base = studio.get("/runs/bench-of-methods/report/hostile.html")["url"].rpartition("/")[0]
    headers = studio.ask("GET", f"{base}/hostile.html").headers
    policy = headers["content-security-policy"]
    assert "sandbox allow-scripts;" in policy and "allow-same-origin" not in policy and "default-src 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["content-type"].startswith("text/html")
    assert studio.ask("GET", f"{base}/clip.mp4", range="bytes=0-9").status == 206
    for path in PATHS:
        answer = studio.ask("GET", f"{base}/{path}")
        assert answer.status == 404, path
    folder = studio.ask("GET", f"{base}/inner/")  # a page's link to a run beside it: said, and no error of the frame
    assert folder.status == 200 and folder.headers["content-security-policy"] == policy
    _, _, name, token = base.split("/")
    other = next(run["name"] for run in studio.get("/runs?kind=edit")["runs"])
    wrong = [f"{name}/{token[:-1]}/clip.mp4", f"{name}/{token}0/clip.mp4", f"{name}/x/clip.mp4"]
    for path in (*wrong, f"{other}/{token}/edited.mp4"):  # files that there are
        assert studio.ask("GET", f"/report/{path}").status == 404
    assert studio.ask("POST", f"{base}/hostile.html", {}).status == 405
    for page in ("none.html", "clip.mp4", ".hidden.html", "run.json"):
        assert studio.api("GET", f"/runs/bench-of-methods/report/{page}").status == 404
    for origin in ({"origin": "null"}, {"origin": "http://evil.example"}, {"sec_fetch_site": "cross-site"}):
        for path in ("/runs", "/runs/bench-of-methods/report/hostile.html", f"/runs/{other}/files/edited.mp4"):
            assert studio.api("GET", path, **origin).status == 403


def test_a_frame_needs_no_token_and_its_address_does(tmp_path: Path) -> None:
    make_report(tmp_path / "runs")
    with serving(tmp_path / "runs", PreloadedPool, devices=(), token=TOKEN) as client:
        stranger = Client(client.port, client.folder)
        path = "/runs/bench-of-methods/report/report.html"
        assert stranger.api("GET", path).status == 401
        assert stranger.ask("GET", client.get(path)["url"]).status == 200  # the frame sends no cookie
