"""Events: all clients see the same, come back where they were, and take bounded memory whether they read or not; the
page misses none."""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import Browser, browsing, expect
from support.studio import API, Client, Listener, serving

from v2edit.studio.events import EventLog


def read(log: EventLog, last: str = "") -> list[tuple[int, str, dict]]:
    client = log.connect(last, lambda: None)
    return [(event.number, event.name, json.loads(event.data)) for event in client.take()]


def test_the_log_keeps_the_latest_of_each_thing():
    log = EventLog()
    client = log.connect("", lambda: None)
    client.take()
    for k in range(5):
        log.publish("job", "a", {"k": k})
        log.publish("run", "a", {"k": k})
    log.publish("job", "b", {"k": 9})
    log.publish("job", "a", None)
    events = [(event.name, json.loads(event.data)) for event in client.take()]
    assert events == [("run", {"k": 4}), ("job", {"k": 9}), ("gone", {"kind": "job", "id": "a"})]
    assert client.take() == []


def test_a_client_that_comes_back_gets_what_it_missed():
    log = EventLog()
    for k in range(3):
        log.publish("job", str(k), {"k": k})
    ((_, name, hello), *events) = read(log, f"{log.epoch}-1")
    assert name == "hello" and not hello["reset"] and [data["k"] for _, _, data in events] == [1, 2]
    for last in ("", "other-1", f"{log.epoch}-99", f"{log.epoch}-x"):
        ((_, _, hello), *events) = read(log, last)
        assert hello == {"epoch": log.epoch, "reset": True} and not events


def test_the_log_and_the_queues_are_bounded():
    log = EventLog(most=10)
    client = log.connect("", lambda: None)
    for k in range(1000):
        log.publish("job", str(k), {"k": k})
        assert client.waiting <= 10
    assert len(log._latest) == 10
    names = [event.name for event in client.take()]
    assert names[0] == "hello"  # which says that all is to be read again
    ((_, _, hello), *_) = read(log, f"{log.epoch}-5")
    assert hello["reset"]
    ((_, _, hello), *events) = read(log, f"{log.epoch}-995")
    assert not hello["reset"] and len(events) == 5


def test_two_clients_agree_and_one_comes_back(studio: Client):
    events, one, other = studio.studio.events, studio.listen(), studio.listen()
    for listener in (one, other):
        assert listener.next()[1] == "hello"
    for k in range(20):
        events.publish("upload", f"test-{k % 4}", {"id": f"test-{k % 4}", "k": k})
    last = [{"id": f"test-{k}", "k": 16 + k} for k in range(4)]

    def latest(listener: Listener) -> list:
        known = {data["id"]: data for _, name, data in listener.events if name == "upload"}
        return [known.get(f"test-{k}") for k in range(4)]

    for listener in (one, other):
        while latest(listener) != last:
            listener.next()
        listener.close()
    events.publish("upload", "test-1", {"id": "test-1", "k": 99})
    back = studio.listen(one.events[-1][0])
    assert not back.next()[2]["reset"]
    assert back.until(lambda name, data: name == "upload")["k"] == 99
    back.close()


def test_streams_are_bounded_and_one_that_reads_nothing_is_dropped(tmp_path):
    with serving(tmp_path / "runs", max_streams=2, read_timeout=0.5) as client:
        events = client.studio.events
        silent = client.connect()
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.sendall(f"GET {API}/events HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode())
        other = client.listen()
        deadline = time.monotonic() + 60
        while events.clients < 2:
            time.sleep(0.01)
        assert client.api("GET", "/events").status == 429
        for k in range(10**6):
            events.publish("job", str(k % 50), {"text": "x" * 5000, "k": k})
            if events.clients < 2:
                break
            assert time.monotonic() < deadline and all(one.waiting <= events.most for one in list(events._clients))
            if k % 100 == 0:
                time.sleep(0.01)
        assert events.clients < 2
        silent.close()
        other.close()


@pytest.fixture(scope="module")
def browser(studio: Client) -> Iterator[Browser]:
    with browsing(f"http://127.0.0.1:{studio.port}/") as started:
        yield started


def test_no_job_is_missed_between_the_list_and_the_events(browser, studio):
    ended: list[str] = []

    def hold(route: Any) -> None:
        answer = route.fetch()
        if not ended:
            gone = studio.studio.queue.submit(kind="edit", title="a job", input={"upload": "gone"})
            ended.append(studio.ended(gone.id, "failed")["id"])
        route.fulfill(response=answer)

    with browser.page("#/gallery") as page:
        page.route("**/api/v1/jobs", hold)
        page.goto(browser.address + "#/jobs")
        page.reload()
        expect(page.locator("h1")).to_be_visible()
        expect(page.locator(f"#job-{ended[0]}")).to_be_visible()


def test_a_run_that_goes_while_the_page_reads_is_gone(browser, studio, sample_run):
    """What an event told is not forgotten when a list comes that was asked for before."""
    shutil.copytree(sample_run, studio.folder / "goes")
    studio.studio.library.scan()
    answered = 0

    def hold(route: Any) -> None:
        nonlocal answered
        answer = route.fetch()
        if answered == 1:  # the page listens, and reads once more what it may have missed
            assert studio.api("DELETE", "/runs/goes").status < 300
            time.sleep(0.3)  # the event goes ahead of the answer
        route.fulfill(response=answer)
        answered += 1

    with browser.page() as page:
        page.goto("about:blank")  # what that page still waited for is no answer that counts
        page.route("**/api/v1/jobs", hold)
        page.goto(browser.address + "#/run/goes")
        while answered < 2:
            page.wait_for_timeout(20)
        page.wait_for_timeout(200)  # what it does with the answer
        expect(page.get_by_text("moved to the trash, or deleted")).to_be_visible()
