"""What a hostile page, a hostile client and a hostile file can do to the studio: nothing."""

import json
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import PreloadedPool
from support.studio import API, Answer, Client, serving
from support.videos import error_of

from v2edit.errors import UserError
from v2edit.studio.command import ServeStudio
from v2edit.studio.media import parse_range
from v2edit.studio.tools import READER, Tools
from v2edit.studio.uploads import Uploads
from v2edit.video import Video, write

TOKEN = "a-token-of-many-letters"
FORM, JSON = "application/x-www-form-urlencoded", "application/json"


def status(answer: Answer) -> int:
    assert answer.status < 500
    if answer.status >= 400:
        assert answer.error
    return answer.status


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1.evil.example:{port}", ""]
)
def test_another_host_is_refused(studio: Client, host: str):
    """DNS rebinding: a page's own name that leads here."""
    assert status(studio.api("GET", "/jobs", host=host.format(port=studio.port))) == 403
    assert status(studio.ask("GET", "/", host=host.format(port=studio.port))) == 403


def test_own_hosts_are_taken(studio: Client):
    for host in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        assert status(studio.api("GET", "/jobs", host=f"{host}:{studio.port}")) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://localhost:1"},
        {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"},
    ],
)  # fmt: skip
@pytest.mark.parametrize(("method", "path"), [("POST", "/jobs"), ("DELETE", "/jobs/x"), ("PATCH", "/runs/x")])
def test_another_site_cannot_change_anything(studio: Client, headers: dict[str, str], method: str, path: str):
    assert status(studio.api(method, path, {}, **headers)) == 403


@pytest.mark.parametrize("kind", [FORM, "multipart/form-data; boundary=x", "text/plain", "", "application/json-evil"])
def test_a_form_of_another_site_is_refused(studio: Client, kind: str):
    body = json.dumps({"input": {"upload": "x"}}).encode()
    assert status(studio.api("POST", "/jobs", body, content_type=kind)) == 415
    if kind in (FORM, "multipart/form-data; boundary=x"):
        assert status(studio.api("PUT", "/uploads/x/clip.mp4", b"x", content_type=kind)) == 415
        assert status(studio.api("POST", "/jobs/x/cancel", None, content_type=kind)) == 415


def test_no_site_is_let_in_by_a_header(studio: Client):
    answer = studio.api("OPTIONS", "/jobs", origin="http://evil.example", access_control_request_method="POST")
    assert status(answer) == 405
    own = studio.api("GET", "/jobs", origin=f"http://127.0.0.1:{studio.port}")
    for one in (answer, own):
        assert not [name for name in one.headers if name.startswith("access-control")]


def test_every_answer_has_the_headers(studio: Client):
    for path in ("/", "/login.js", f"{API}/jobs", f"{API}/nothing", "/nothing"):
        headers = studio.ask("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin" and "server" not in headers


TRAVERSALS = [
    "../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..%5c..%5cetc",
    "%2fetc%2fpasswd", "/etc/passwd", "run.json%00.png", "link.txt", "dir/secret.txt",
    ".state/lock", ".hidden", "....//run.json", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(studio: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with files that are none of its own, and a page, a script and a drawing in it."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("secret")
    folder = studio.folder / "hostile"
    folder.mkdir()
    facts = {"status": "done", "kind": "edit", "started": "2026-01-01T00:00:00+00:00", "instruction": "<script>"}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "dir").symlink_to(outside)
    (folder / ".hidden").write_text("hidden")
    for name in ("page.html", "drawing.svg", "script.js", "page.xhtml", "photo.png.html", "doc.pdf"):
        (folder / name).write_text("<script>alert(1)</script>")
    studio.wait("/runs?q=hostile", lambda one: one["total"] == 1)
    return "hostile"


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out_of_a_run(studio: Client, run: str, path: str):
    for where in (f"/runs/{run}/files/{path}", f"/runs/{path}/files/run.json", f"/runs/{run}%2f..%2f{path}"):
        answer = studio.api("GET", where)
        assert answer.status in (400, 403, 404, 405), (where, answer)
        assert b"secret" not in answer.body and b"root:" not in answer.body
    assert studio.ask("GET", f"/{path or 'nothing'}").status in (400, 404)
    assert status(studio.api("PUT", f"/uploads/{path or 'x'}/clip.mp4", b"x")) in (400, 404, 405)


def test_what_could_run_is_a_file_to_save(studio: Client, run: str):
    names = {one["name"] for one in studio.get(f"/runs/{run}")["files"]}
    assert not names & {"link.txt", "dir/secret.txt", ".hidden"} and "page.html" in names
    for name in sorted(names - {"run.json"}):
        headers = studio.api("GET", f"/runs/{run}/files/{name}").headers
        assert headers["content-type"] == "application/octet-stream" and "attachment" in headers["content-disposition"]
        assert "sandbox" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"


def test_ranges_are_answered(studio: Client, run: str):
    whole = (studio.folder / run / "run.json").read_bytes()
    path = f"/runs/{run}/files/run.json"
    for text, first, last in (("0-4", 0, 5), ("5-", 5, None), ("-7", -7, None), ("3-99999", 3, None)):
        answer = studio.api("GET", path, range=f"bytes={text}")
        assert answer.status == 206 and answer.body == whole[first:last]
    assert studio.api("GET", path, range="bytes=0-1,3-4").body == whole  # several at once are not
    assert studio.api("GET", path, range=f"bytes={len(whole)}-").status == 416
    etag = studio.api("GET", path).headers["etag"]
    assert studio.api("GET", path, if_none_match=etag).status == 304
    assert studio.api("HEAD", path).headers["content-length"] == str(len(whole))
    assert parse_range("bytes=9-2", 10) is None and parse_range("x", 10) == (0, 10)


@pytest.mark.parametrize("id", ["x", "a" * 20, "../jobs", "%00", "." * 20])
def test_ids_cannot_be_guessed(studio: Client, id: str):
    for method, path in (
        ("GET", f"/jobs/{id}"), ("POST", f"/jobs/{id}/cancel"), ("GET", f"/uploads/{id}"), ("DELETE", f"/trash/{id}"),
        ("GET", f"/uploads/{id}/proxy.mp4"), ("GET", f"/masks/{id}/mask.mp4"), ("POST", f"/trash/{id}/restore"),
    ):  # fmt: skip
        assert status(studio.api(method, path)) == 404
    body: dict[str, Any] = {"input": {"upload": id}, "instruction": "x"}
    assert status(studio.api("POST", "/jobs", body)) == 404
    ids = {studio.api("POST", "/uploads", {"name": "x", "bytes": 1}).json["id"] for _ in range(20)}
    assert len(ids) == 20 and all(len(one) == 20 for one in ids)


@pytest.fixture(scope="module")
def some_upload(studio: Client, sample: Any) -> str:
    return studio.upload(sample.clip)["id"]


@pytest.mark.parametrize(
    "options",
    [
        {"mask": "/etc/passwd"}, {"keep": "/etc/passwd"}, {"prompts": "/etc/passwd"}, {"out": "/tmp/x"},
        {"output": "/tmp/x"}, {"cache_file": "/etc/passwd"}, {"lora": ["/etc/passwd"]}, {"transformer": "/etc/x.gguf"},
        {"allow_pickle": True}, {"model": "/etc"}, {"model": "../weights"}, {"model": "."}, {"device": "cuda:7"},
        {"lvlm": "gpt"}, {"lvlm": True}, {"lvlm_url": "http://evil.example"}, {"prompt_style": "/etc"},
        {"block_processes": 64}, {"path": "/etc/passwd"}, {"config": {}}, {"model_options": {}},
        {"video": "/etc/passwd"}, {"nothing": 1}, {"steps": {"a": 1}}, {"steps": "many"}, {"seeds": 1000},
        {"source_prompt": "x" * 5000},
    ],
)  # fmt: skip
def test_options_that_name_files_or_code_are_refused(
    studio: Client, sample: Any, some_upload: str, options: dict[str, Any]
):
    body = {"input": {"upload": some_upload}, "instruction": sample.instruction, "options": options}
    assert status(studio.api("POST", "/jobs", body)) == 422
    assert status(studio.api("POST", "/prompts", body)) == 422
    assert status(studio.api("POST", "/estimates", body)) == 422


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000, b'{"input": 1}'])
def test_bodies_that_are_no_request_are_refused(studio: Client, body: bytes):
    for method, path in (("POST", "/jobs"), ("POST", "/uploads"), ("POST", "/masks"), ("PATCH", "/runs/x")):
        assert status(studio.api(method, path, body, content_type=JSON)) in (400, 404, 422)


def test_bodies_are_bounded(studio: Client):
    large = b'{"instruction": "' + b"x" * (2 * 2**20) + b'"}'
    assert status(studio.api("POST", "/jobs", large, content_type=JSON)) == 413
    with studio.connect() as raw:  # in pieces, of which nothing is said before
        head = f"POST {API}/jobs HTTP/1.1\r\nHost: 127.0.0.1:{studio.port}\r\nContent-Type: {JSON}\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"%x\r\n%s\r\n" % (2**16, b"x" * 2**16)
        answered = b""
        raw.settimeout(0.01)
        for _ in range(1000):
            try:
                raw.sendall(piece)
                answered = raw.recv(100)
            except TimeoutError:
                continue
            except OSError:
                break
            break
        assert answered.startswith(b"HTTP/1.1 413") or not answered


def test_a_claim_is_bounded_and_binds(studio: Client):
    assert status(studio.api("POST", "/uploads", {"name": "x.mp4", "bytes": 10 * 2**50})) == 413
    id = studio.api("POST", "/uploads", {"name": "x.mp4", "bytes": 100}).json["id"]
    assert status(studio.api("PUT", f"/uploads/{id}/x.mp4", b"x" * 101)) == 413
    assert status(studio.api("PUT", f"/uploads/{id}/x.mp4", b"x" * 90)) == 200
    assert status(studio.api("PUT", f"/uploads/{id}/y.mp4", b"x")) == 409  # one file was said
    assert status(studio.api("PUT", f"/uploads/{id}/x.mp4", b"x" * 100)) == 200  # the same again, in its place
    with studio.connect() as raw:  # ten gigabytes are claimed for a file, of an upload of a hundred bytes
        head = f"PUT {API}/uploads/{id}/x.mp4 HTTP/1.1\r\nHost: 127.0.0.1:{studio.port}\r\nContent-Length: {10 * 2**30}"
        raw.sendall(f"{head}\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    place = studio.folder / ".studio" / "uploads" / id
    assert [path.name for path in (place / "files").iterdir()] == ["x.mp4"] and not list(place.glob(".*.part"))


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    uploads = Uploads(tmp_path / "uploads", 2**60)
    with pytest.raises(Exception, match="no room"):
        uploads.create("x.mp4", shutil.disk_usage(tmp_path).free, 1, "file")


@pytest.mark.parametrize(
    "content", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>", b"\0" * 1000, b"PK\3\4"]
)
def test_uploads_that_are_no_video_fail_and_are_never_sent_back(studio: Client, tmp_path: Path, content: bytes):
    (tmp_path / "page.svg").write_bytes(content)
    id = studio.api("POST", "/uploads", {"name": "page.svg", "bytes": max(1, len(content))}).json["id"]
    studio.api("PUT", f"/uploads/{id}/page.svg", content)
    finished = studio.api("POST", f"/uploads/{id}/finish")
    if content:
        found = studio.wait(f"/uploads/{id}", lambda one: one["state"] in ("ready", "failed"))
        assert found["state"] == "failed" and found["reason"] and str(studio.folder) not in found["reason"]
    else:
        assert status(finished) == 422
    for name in ("page.svg", "files/page.svg", "proxy.mp4", "thumb.jpg", "upload.json"):
        assert status(studio.api("GET", f"/uploads/{id}/{name}")) in (404, 405)


def test_a_hostile_file_takes_its_reader_and_not_the_studio(studio: Client, sample: Any, tmp_path: Path):
    tools = studio.studio.tools
    noise = np.random.default_rng(0).integers(0, 255, (48, 256, 256, 3), np.uint8)  # which takes long to encode
    write(Video(noise, 8), tmp_path / "edited.mp4")
    film: dict[str, Any] = {"folder": str(tmp_path), "kind": "webm", "out": str(tmp_path / "film.webm")}
    assert "more than" in str(tools.call("transcode", READER, 0.1, **film).exception())
    call = tools.call("transcode", READER, 60.0, **film)
    while not call.done():  # a decoder that crashes
        for process, _ in list(tools._pool._processes.values()):
            with suppress(ProcessLookupError):  # It is gone already.
                os.kill(process.pid, signal.SIGKILL)
    failed = call.exception()
    assert "SIGKILL" in str(failed)
    assert studio.upload(sample.clip)["state"] == "ready"


def test_the_memory_of_a_reader_is_bounded(sample: Any, tmp_path: Path):
    tools = Tools(64 * 2**20, 8, PreloadedPool)
    try:
        call = tools.call("write_frame", READER, 60.0, path=str(sample.clip), number=0, out=str(tmp_path / "a.jpg"))
        assert isinstance(call.exception(), UserError)
    finally:
        tools.close()


def test_a_slow_request_is_ended(tmp_path: Path):
    with serving(tmp_path / "runs", read_timeout=0.3) as client:
        head = f"POST {API}/jobs HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Type: {JSON}\r\n"
        with client.connect() as raw:  # a body that does not come
            raw.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 408")
        with client.connect() as raw:  # a body that comes byte by byte
            raw.sendall(f"{head}Content-Length: 10000\r\n\r\n".encode())
            raw.settimeout(0.05)
            answered, deadline = b"", time.monotonic() + 60
            while not answered and time.monotonic() < deadline:
                try:
                    raw.sendall(b"x")
                    answered = raw.recv(100)
                except TimeoutError:
                    continue
            assert answered.startswith(b"HTTP/1.1 408")
        for sent in (head.encode(), b""):  # a head that does not end, and nothing at all
            with client.connect() as raw, suppress(ConnectionResetError):
                raw.sendall(sent)
                assert raw.recv(100) == b""
        assert client.get("/jobs")["jobs"] == []


def test_a_token_is_asked_for_and_never_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any):
    with caplog.at_level(logging.DEBUG), serving(tmp_path / "runs", token=TOKEN) as client:
        stranger = Client(client.port, client.folder)
        for path in ("/jobs", "/runs", "/events", "/machine", "/uploads"):
            assert status(stranger.api("GET", path)) == 401
        assert status(stranger.api("POST", "/uploads", {"name": "x", "bytes": 1})) == 401
        assert status(stranger.api("GET", f"/jobs?token={TOKEN}")) == 401  # an address is written down everywhere
        wrong = [{"authorization": "Bearer wrong"}, {"cookie": "v2edit_studio=wrong"}, {"cookie": "v2edit_studio"}]
        for headers in [*wrong, {"authorization": f"Basic {TOKEN}"}]:
            assert status(stranger.api("GET", "/jobs", **headers)) == 401
        assert status(client.api("GET", "/jobs")) == 200
        assert stranger.ask("GET", "/login").status == 200
        assert status(stranger.ask("POST", "/login", {"token": "wrong"})) == 401
        assert status(stranger.ask("POST", "/login", {"token": TOKEN}, origin="http://evil.example")) == 403
        cookie = stranger.ask("POST", "/login", {"token": TOKEN}).headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert status(stranger.api("GET", "/jobs", cookie=cookie.partition(";")[0])) == 200
        assert TOKEN not in json.dumps(client.get("/jobs"))
    assert TOKEN not in caplog.text and TOKEN not in "".join(capfd.readouterr())


def test_another_address_asks_for_a_token(tmp_path: Path):
    assert ServeStudio(host="127.0.0.1").token() is None and ServeStudio(host="localhost").token() is None
    for host in ("0.0.0.0", "192.168.1.2", "::", "example.org"):
        one, other = ServeStudio(host=host).token(), ServeStudio(host=host).token()
        assert one and other and one != other and len(one) >= 32
    settings = ServeStudio(tmp_path, host="0.0.0.0", allow_host=("me.example:80",)).settings(7)
    assert settings.token and settings.allows("me.example:80") and settings.allows("192.168.1.2:7")
    for host in ("evil.example:7", "me.example:7", "192.168.1.2:8", "192.168.1.2", "192.168.1.2.evil.example:7"):
        assert not settings.allows(host)
    assert not ServeStudio(tmp_path).settings(7).allows("192.168.1.2:7")
    assert ServeStudio(host="0.0.0.0").address(settings).endswith(f"/login#{settings.token}")
    for text in ("short", "with a space in it, and long", "ü" * 20):
        (tmp_path / "token").write_text(text)
        assert error_of(lambda: ServeStudio(token_file=tmp_path / "token").token())
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert ServeStudio(token_file=tmp_path / "token").token() == TOKEN


def test_without_its_packages_the_studio_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    text = error_of(lambda: ServeStudio(tmp_path / "runs", port=0).run(lambda address, settings: None))
    assert "pip install 'v2edit[studio]'" in text and not (tmp_path / "runs").exists()


def test_jobs_are_bounded_in_rate_and_number(sample: Any, tmp_path: Path):
    model = sample.options["model"]
    with serving(tmp_path / "runs", devices=(), jobs_per_minute=3, model=model) as client:
        upload = client.upload(sample.clip)["id"]
        for _ in range(3):
            client.submit(upload, sample.instruction, **sample.options)
        body = {"input": {"upload": upload}, "instruction": sample.instruction, "options": sample.options}
        assert status(client.api("POST", "/jobs", body)) == 429


def test_keys_of_language_models_stay_in_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from v2edit.prompts.lvlm import LVLMConfig

    secret = "sk-" + "s" * 30
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    lvlm = LVLMConfig(model="some-model", url=f"http://user:{secret}@localhost:1/v1?key={secret}")
    with serving(tmp_path / "runs", lvlm=lvlm, devices=()) as client:
        (client.folder / ".studio" / "uploads").mkdir(exist_ok=True)
        upload = client.studio.uploads.create("clip.mp4", 10, 1, "file")
        client.studio.uploads.set(upload.id, state="ready", facts={"path": "files", "kind": "video"})
        client.submit(upload.id, "make it blue", lvlm=True)
        told = client.api("GET", "/jobs").body
        assert b"--lvlm some-model" in told and secret.encode() not in told
        for path in (client.folder / ".studio").rglob("*.json"):
            assert secret not in path.read_text()


def test_the_server_loads_no_torch(studio: Client):
    """Nor does it decode a video: the modules that it takes are looked at in a process of its own."""
    import subprocess

    code = (
        "import sys; from v2edit.studio import app, core, server, command; from v2edit.studio.options import build_job;"
        "from pathlib import Path; build_job('edit', Path('x.mp4'), 'a', {'steps': 4, 'crf': 20, 'box': '1,2,3,4'});"
        "print(sorted({'torch', 'av', 'cv2', 'diffusers', 'PIL'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "[]", ran
