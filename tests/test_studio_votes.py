"""Studies over HTTP and in the browser: made of runs or a report, voted on by the link alone, blind, and kept."""

import csv
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import LOOK, PATIENCE, WIDTHS, Browser, browsing, expect
from support.processes import PreloadedPool
from support.studies import ASPECTS, FRAMES, LABELS, SECRETS, Voter, make_report, make_runs
from support.studio import Client, server_process, serving

INSTRUCTIONS = ("make it lighter", "make it darker")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A studio without workers over six runs, three of each instruction, and a report."""
    folder = tmp_path_factory.mktemp("studies") / "runs"
    make_runs(folder, INSTRUCTIONS)
    make_report(folder)
    with serving(folder, PreloadedPool, devices=()) as client:
        yield client


def runs_of(client: Client) -> list[dict[str, Any]]:
    names = [run["name"] for run in client.get("/runs?kind=edit&limit=50")["runs"]]
    return [{"run": name, "label": next(label for label in LABELS if label in name)} for name in names]


def make(client: Client, **facts: Any) -> dict[str, Any]:
    body = {"title": "Which?", "runs": [] if "bench" in facts else runs_of(client)} | facts
    answer = client.api("POST", "/studies", body)
    assert answer.status == 201, answer
    return answer.json


def test_a_study_of_runs_compares_those_of_one_instruction(studio):
    study = make(studio, title="", shown="pairs")
    assert (study["comparisons"], sorted(study["labels"]), study["voters"]) == (2, sorted(LABELS), 0)
    assert study in studio.get("/studies")["studies"] and studio.get(f"/studies/{study['id']}") == study
    unnamed = make(studio, runs=[one | {"label": None} for one in runs_of(studio)])
    assert unnamed["labels"] and not set(unnamed["labels"]) & set(LABELS)
    bodies = [{"runs": [{"run": "nothing"}]}, {"runs": []}, {"runs": runs_of(studio)[:1]}, {"bench": "nothing"},
              {"bench": "bench-of-methods", "page": "other.html"}, {"bench": "bench-of-methods", "page": "../x.html"},
              {"runs": runs_of(studio), "shown": "all"}, {"runs": runs_of(studio), "questions": {}}]  # fmt: skip
    for body in bodies:
        answer = studio.api("POST", "/studies", body)
        assert answer.status in (404, 422) and answer.error


def test_a_study_of_a_report_compares_its_methods(studio):
    study = make(studio, bench="bench-of-methods")
    assert (study["comparisons"], study["labels"]) == (2, list(LABELS[:2]))  # without the references
    voter = Voter(studio, study["link"])
    shown = voter.ballot()["comparison"]
    crops = [shown["source"]["media"]["crop"] if "media" in shown["source"] else shown["source"]["crop"]]
    crops += [one["media"]["crop"] for one in shown["candidates"]]
    assert sorted(crops) == [[0, 0, 16, 16], [32, 0, 16, 16], [48, 0, 16, 16]]


@pytest.mark.parametrize("shown", ["lists", "single"])
def test_nothing_that_voters_get_names_what_they_compare(studio, shown):
    """Neither the ballots nor the addresses, headers and bytes of the videos."""
    voter = Voter(studio, make(studio, shown=shown)["link"])
    ballot = voter.ballot()
    while ballot["comparison"]:
        media = [ballot["comparison"]["source"], *(one["media"] for one in ballot["comparison"]["candidates"])]
        for one in media:
            answer = voter.ask("GET", one["url"])
            assert answer.status == 200 and answer.headers["content-type"] == "video/mp4"
            assert "last-modified" not in answer.headers  # which would order them by when they were made
        ballot = voter.vote(ballot).json
    for path in ("", "/ballot", "/media/nothing.mp4", "/media/0123456789abcdef.mp4", "/nothing"):
        voter.ask("GET", voter.link + path)
    for answer in voter.seen:
        told = answer.body + repr(answer.headers).encode()
        assert not [secret for secret in SECRETS if secret.encode() in told]


def test_orders_differ_between_voters_and_hold_for_one(studio):
    link = make(studio)["link"]
    orders = set()
    for _ in range(20):
        voter = Voter(studio, link)
        first = voter.ballot()["comparison"]
        assert voter.ballot()["comparison"] == first  # as a reload
        orders.add((first["instruction"], *(one["media"]["url"] for one in first["candidates"])))
    assert len(orders) > 4


def test_a_link_is_of_its_study_alone(studio):
    one, other = make(studio), make(studio)
    voter, stranger = Voter(studio, one["link"]), Voter(studio, other["link"])
    ballot, foreign = voter.ballot(), stranger.ballot()
    assert stranger.vote(foreign, voter=voter.number).status == 409  # a voter of another study,
    assert voter.vote(foreign).status == 409  # and a ballot of it
    media = foreign["comparison"]["source"]["url"].rpartition("/")[2]
    assert voter.ask("GET", f"{voter.link}/media/{media}").status == 404
    for link in ("/study/nothing", one["link"][:-1], f"{one['link']}x", f"/study/{one['id']}", "/study/..%2f"):
        forger = Voter(studio, link)
        for answer in (forger.ask("GET", link), forger.ask("GET", f"{link}/ballot"), forger.vote(ballot)):
            assert answer.status == 404 and answer.error
    for number in ("", "someone.0123456789abcdef", voter.number[:-1], f"x{voter.number}", "x" * 61):
        assert voter.vote(ballot, voter=number).status in (409, 422)
        again = studio.ask("GET", f"{voter.link}/ballot?voter={number}").json
        assert again["voter"] not in (number, voter.number)  # a new one
    assert studio.get(f"/studies/{one['id']}/results")["votes"] == 0
    assert voter.vote(ballot).status == 200


def test_scores_are_checked_and_nonsense_is_refused_in_one_line(studio):
    study = make(studio)
    voter = Voter(studio, study["link"])
    ballot = voter.ballot()
    keys = [one["key"] for one in ballot["comparison"]["candidates"]]
    right = {key: dict.fromkeys(ASPECTS, 3) for key in keys}
    wrong: list[Any] = [
        {}, {keys[0]: right[keys[0]]}, right | {"x": right[keys[0]]}, right | {keys[0]: {"quality": 3}},
        right | {keys[0]: right[keys[0]] | {"beauty": 3}}, [], "scores", 5, None, {key: 3 for key in keys},
    ]  # fmt: skip
    scores = (0, 6, -1, 2.5, 10**30, "x", None, [])
    wrong += [right | {keys[0]: right[keys[0]] | {"quality": score}} for score in scores]
    for scores in wrong:
        answer = voter.vote(ballot, scores=scores)
        assert answer.status in (409, 422) and answer.error
    for body in ({"keys": keys[::-1]}, {"keys": []}, {"keys": [1]}, {"more": 1}, {"keys": keys * 9}):
        answer = voter.vote(ballot, **body)
        assert answer.status in (409, 422) and answer.error
    results = studio.get(f"/studies/{study['id']}/results")
    assert results["votes"] == 0 and voter.ballot()["comparison"] == ballot["comparison"]


def test_results_are_those_of_three_voters_and_csv_has_every_score(studio):
    study = make(studio)
    for score in (2, 3, 4):
        voter = Voter(studio, study["link"])
        first = voter.ballot()
        assert voter.vote(first, 1).status == voter.vote(first, score).status == 200  # the later one counts
        assert voter.ballot()["done"] == 1 and voter.vote_all(score) == 1
        assert voter.ballot()["comparison"] is None
    results = studio.get(f"/studies/{study['id']}/results")
    assert (results["voters"], results["votes"]) == (3, 6)
    assert {row["label"] for row in results["means"]} == set(LABELS)
    for row in results["means"]:
        for aspect in ASPECTS:
            assert row[aspect]["mean"] == 3 and 2 <= row[aspect]["low"] < 3 < row[aspect]["high"] <= 4
    assert len(results["preferences"]) == 3 and all(row["quality"]["mean"] == 0.5 for row in results["preferences"])
    assert set(results["agreement"]) == set(ASPECTS) and results["agreement"]["quality"] < 0  # each has their own score
    answer = studio.ask("GET", study["csv"])
    kind, saved = answer.headers["content-type"], answer.headers["content-disposition"]
    assert kind.startswith("text/csv") and saved.startswith("attachment")
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert len(rows) == 3 * 2 * 3 * 3 and {row["label"] for row in rows} == set(LABELS)
    assert sorted(row["score"] for row in rows) == sorted("234" * 18)
    late = Voter(studio, study["link"])
    ballot = late.ballot()
    assert studio.api("POST", f"/studies/{study['id']}/close").json["closed"]
    assert late.vote(ballot).status == 409 and late.ballot()["closed"]
    assert studio.get(f"/studies/{study['id']}/results") == results


def test_a_server_that_is_killed_between_two_votes_loses_none(tmp_path):
    folder = tmp_path / "runs"
    make_runs(folder)
    with server_process(folder) as (client, process):
        study = make(client, shown="single")
        voter = Voter(client, study["link"])
        assert voter.vote(voter.ballot(), 5).status == 200
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with server_process(folder) as (client, process):
        assert client.get("/studies")["studies"][0]["voters"] == 1
        again = Voter(client, study["link"])
        again.number = voter.number
        assert again.ballot()["done"] == 1 and again.vote_all(4) == 5
        rows = list(csv.DictReader(io.StringIO(client.ask("GET", study["csv"]).body.decode())))
        assert {row["voter"] for row in rows} == {"1"}
        assert sorted(row["score"] for row in rows) == sorted("5" * 3 + "4" * 15)


@pytest.fixture(scope="module")
def browser(studio: Client) -> Iterator[Browser]:
    with browsing(f"http://127.0.0.1:{studio.port}/") as started:
        yield started


def vote_by_mouse(page: Any, score: int) -> None:
    for group in page.locator("fieldset").all():
        group.get_by_role("radio", name=str(score), exact=True).check()
    page.get_by_role("button", name="Next").click()


def vote_by_keys(page: Any, score: int) -> None:
    """Tab to each question, take a score with the arrows, and go on with Enter."""
    for _ in page.locator("fieldset").all():
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        for _ in range(score - 1):
            page.keyboard.press("ArrowRight")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Next":
            break
    page.keyboard.press("Enter")


def pictures(page: Any) -> list[str]:
    return page.evaluate("Array.from(document.querySelectorAll('canvas'), (one) => one.toDataURL())")


def wait_until(page: Any, holds: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE) // 20):
        if holds():
            return
        page.wait_for_timeout(20)
    raise AssertionError("the page did not come to it")


def test_voters_step_through_the_frames_of_all_clips_at_once(browser, studio):
    study = make(studio)
    with browser.page(study["link"].lstrip("/")) as page:
        expect(page.locator("canvas").last).to_be_visible()
        # A pause that comes before a clip plays is no fault.
        page.evaluate("Array(5).fill(document.querySelector('.bar button')).forEach((toggle) => toggle.click())")
        if page.get_by_role("button", name="Pause").count():
            page.get_by_role("button", name="Pause").click()
        forward, back = (page.get_by_role("button", name=name) for name in ("Frame forward", "Frame back"))
        for _ in range(FRAMES):
            back.click()
        page.wait_for_timeout(500)
        shown = [pictures(page)]
        for _ in range(FRAMES - 1):
            forward.click()
            wait_until(page, lambda: all(one != last for one, last in zip(pictures(page), shown[-1], strict=True)))
            shown.append(pictures(page))
        assert all(len(set(clip)) == FRAMES for clip in zip(*shown, strict=True))
        for before in reversed(shown[:-1]):
            back.click()
            wait_until(page, lambda before=before: pictures(page) == before)
    assert not browser.complaints


def test_three_voters_vote_in_the_browser_and_the_results_show_them(browser, studio):
    study = make(studio, title="Which looks better?")
    link = study["link"].lstrip("/")
    for number, score in enumerate((5, 4, 3)):
        with browser.page(link) as page:
            for done in range(len(INSTRUCTIONS)):
                expect(page.locator("#count")).to_have_text(f"{done + 1} of {len(INSTRUCTIONS)}")
                expect(page.locator("canvas").last).to_be_visible()
                assert page.get_by_role("button", name="Next").is_disabled()
                if done == 0:
                    page.reload()  # which shows the same
                    expect(page.locator("#count")).to_have_text(f"1 of {len(INSTRUCTIONS)}")
                (vote_by_keys if number == 0 else vote_by_mouse)(page, score)
            expect(page.locator("main")).to_contain_text("Thank you")
            assert not [label for label in LABELS if label in page.content()]
    results = studio.get(f"/studies/{study['id']}/results")
    assert (results["voters"], results["votes"]) == (3, 6)
    with browser.page(f"#/study/{study['id']}") as page:
        for label in LABELS:
            row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=label, exact=True))
            expect(row).to_contain_text("4.00")
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV").click()
        assert Path(download.value.path()).read_text().count("\n") == 1 + 3 * 2 * 3 * 3
    assert not browser.complaints and not browser.foreign


VIEWS = {
    "#/studies": ".study-row", "#/study/ID": ".study-page .mean", "#/studies?new=1": ".run-picker li",
    "#/run/REPORT": ".stage a", "#/report/REPORT": ".report iframe", "LINK": "figure",
}  # fmt: skip


def test_studies_can_be_read_and_used(browser, studio):
    """Names on all controls, contrast of 4.5 and more, nothing wider than the window, at each width in both schemes."""
    study, wrong = make(studio), {}
    for score in (2, 4):
        Voter(studio, study["link"]).vote_all(score)
    runs = ",".join(one["run"] for one in runs_of(studio))
    names = {"ID": study["id"], "RUNS": runs, "REPORT": "bench-of-methods", "LINK": study["link"].lstrip("/")}
    with browser.page() as page:
        for view, part in VIEWS.items():
            for name, value in names.items():
                view = view.replace(name, value)
            page.goto(browser.address + view)
            expect(page.locator(part).first).to_be_visible()
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 860})
                for scheme in ("dark", "light"):
                    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                    wrong[view, width, scheme] = page.evaluate(LOOK)
    assert not {where: found for where, found in wrong.items() if found}
    assert not browser.complaints and not browser.foreign
