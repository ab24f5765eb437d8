"""Blind comparisons: ballots in an order of each voter's own, votes that outlive a kill, and results that are right."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from v2edit import video
from v2edit.bench.page import as_html
from v2edit.bench.report import Table
from v2edit.bench.scoring import Row, ScoredTask
from v2edit.bench.tasks import primitives_tasks
from v2edit.errors import UserError
from v2edit.studio.studies import (
    VOTES_FILE,
    Clip,
    Entry,
    Studies,
    Study,
    ballots_of,
    close_study,
    create_study,
    find_studies,
    new_voter,
    read_study,
    read_votes,
    record_vote,
)
from v2edit.studio.study_entries import entries_of_bench, entries_of_runs
from v2edit.studio.study_results import krippendorff_alpha, study_results, votes_csv

LABELS = ("alpha", "beta", "gamma")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("source", *LABELS):
        (folder / f"{name}.mp4").write_bytes(name.encode() * 100)
    return folder


def entry(videos: Path, instruction: str = "make it blue") -> Entry:
    edits = {label: Clip(videos / f"{label}.mp4", "right") for label in LABELS}
    return Entry(instruction, Clip(videos / "source.mp4"), edits)


def make(tmp_path: Path, videos: Path, shown: str = "lists", count: int = 4) -> tuple[Path, Study]:
    folder = create_study(tmp_path / "studies", "Which?", shown, [entry(videos, f"edit {n}") for n in range(count)])
    return folder, read_study(folder)


def score_all(folder: Path, study: Study, voter: str, score) -> None:
    labels = {one.key: one.label for each in study.comparisons for one in each.candidates}
    for ballot in ballots_of(study, voter):
        scores = {key: {question: score(labels[key], question) for question in study.questions} for key in ballot.keys}
        record_vote(folder, study, voter, ballot.keys, scores)


@pytest.mark.parametrize(("shown", "ballots", "size"), [("lists", 4, 3), ("pairs", 4, 2), ("single", 12, 1)])
def test_each_voter_is_asked_each_thing_once_in_an_order_of_their_own(
    tmp_path: Path, videos: Path, shown: str, ballots: int, size: int
) -> None:
    _, study = make(tmp_path, videos, shown)
    voters = [new_voter(study) for _ in range(200)]
    orders = [ballots_of(study, voter) for voter in voters]
    for voter, order in zip(voters, orders, strict=True):
        assert order == ballots_of(study, voter)  # A reload shows the same.
        assert len(order) == len(set(order)) == ballots and {len(one.keys) for one in order} == {size}
        assert {one.comparison for one in order} == {one.id for one in study.comparisons}
    # Each candidate is as often the first as the others: 200 ballots of 3, 67 ± 7 each.
    first = Counter(one.keys[0] for order in orders for one in order if one.comparison == study.comparisons[0].id)
    assert len(first) == 3 and min(first.values()) > 0.6 * sum(first.values()) / 3


def test_what_voters_see_tells_nothing_and_outlives_the_runs(tmp_path: Path, videos: Path) -> None:
    folder, study = make(tmp_path, videos)
    for path in videos.iterdir():
        path.unlink()
    for comparison in study.comparisons:
        for one in comparison.candidates:
            assert one.label not in one.key + one.media.file
            assert (folder / "media" / one.media.file).read_bytes() == one.label.encode() * 100


def test_results_are_those_of_the_votes(tmp_path: Path, videos: Path) -> None:
    folder, study = make(tmp_path, videos)
    # By hand: beta is a point above alpha for all, gamma equal to beta; the third voter is a point lower throughout.
    for lower in (0, 0, 1):
        score_all(folder, study, new_voter(study), lambda label, _, lower=lower: (3 if label == "alpha" else 4) - lower)
    results = study_results(study, read_votes(folder))
    assert (results.voters, results.votes) == (3, 12)
    quality = {label: results.means[label]["quality"] for label in LABELS}
    assert quality["alpha"].mean == pytest.approx(8 / 3) and quality["beta"].mean == pytest.approx(11 / 3)
    assert quality["alpha"].low < 8 / 3 < quality["alpha"].high
    assert results.preferences["alpha", "beta"]["fulfilment"].mean == 0
    assert results.preferences["beta", "gamma"]["fulfilment"].mean == 0.5
    rows = votes_csv(study, read_votes(folder)).splitlines()
    assert len(rows) == 1 + 3 * 4 * 3 * 3 and rows[1].split(",")[0] == "1"


def test_a_voter_who_votes_again_is_counted_once(tmp_path: Path, videos: Path) -> None:
    folder, study = make(tmp_path, videos)
    voter = new_voter(study)
    score_all(folder, study, voter, lambda *_: 1)
    score_all(folder, study, voter, lambda *_: 5)
    results = study_results(study, read_votes(folder))
    assert results.votes == 4 and results.means["alpha"]["quality"].mean == 5


def test_alpha_is_krippendorffs() -> None:
    # The data of his paper (4 observers, 12 units, gaps); it gives 0.849 for intervals.
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]  # fmt: skip
    units = [[row[unit] for row in observers if row[unit] is not None] for unit in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    rng = np.random.default_rng(0)
    assert abs(krippendorff_alpha(rng.integers(1, 6, size=(3000, 4)).astype(float))) < 0.03
    assert krippendorff_alpha([[3, 3], [1, 1]]) == 1
    assert math.isnan(krippendorff_alpha([[3], [4]])) and math.isnan(krippendorff_alpha([[3, 3], [3, 3]]))


def test_wrong_votes_are_refused_and_leave_nothing(tmp_path: Path, videos: Path) -> None:
    folder, study = make(tmp_path, videos)
    voter = new_voter(study)
    ballot = ballots_of(study, voter)[0]
    right = {key: dict.fromkeys(study.questions, 3) for key in ballot.keys}
    key = ballot.keys[0]
    for keys, scores, who in [
        (ballot.keys, right, "someone.0123456789abcdef"),
        (ballot.keys, right, new_voter(study) + "0"),
        (ballot.keys[::-1], right, voter),
        (("x", "y", "z"), right, voter),
        (ballot.keys, right | {"x": right[key]}, voter),
        (ballot.keys, {key: right[key]}, voter),
        (ballot.keys, right | {key: {"quality": 3}}, voter),
        (ballot.keys, right | {key: right[key] | {"quality": 6}}, voter),
        (ballot.keys, right | {key: right[key] | {"quality": 0}}, voter),
        (ballot.keys, right | {key: right[key] | {"quality": True}}, voter),
    ]:
        with pytest.raises(UserError):
            record_vote(folder, study, who, keys, scores)
    # A made-up voter has ballots of their own, which are refused for the signature alone.
    for forged in ("someone.0123456789abcdef", f"x{voter}", voter.rpartition(".")[0]):
        own = ballots_of(study, forged)[0].keys
        with pytest.raises(UserError, match="no ballot"):
            record_vote(folder, study, forged, own, {key: dict.fromkeys(study.questions, 3) for key in own})
    assert not read_votes(folder)
    record_vote(folder, study, voter, ballot.keys, right)
    close_study(folder)
    with pytest.raises(UserError, match="closed"):
        record_vote(folder, study, voter, ballot.keys, right)
    assert len(read_votes(folder)) == 1


def test_a_study_takes_no_more_voters_than_it_may(tmp_path: Path, videos: Path) -> None:
    folder, study = make(tmp_path, videos)
    full = study.model_copy(update={"voters_max": 1})
    first = new_voter(full)
    score_all(folder, full, first, lambda *_: 2)
    with pytest.raises(UserError, match="takes no more"):
        score_all(folder, full, new_voter(full), lambda *_: 2)
    score_all(folder, full, first, lambda *_: 3)


VOTE = """
import sys
from pathlib import Path
from v2edit.studio.studies import ballots_of, new_voter, read_study, record_vote
folder = Path(sys.argv[1]); study = read_study(folder)
while True:
    voter = new_voter(study)
    for ballot in ballots_of(study, voter):
        record_vote(folder, study, voter, ballot.keys, {k: dict.fromkeys(study.questions, 3) for k in ballot.keys})
        print(voter, ballot.comparison, flush=True)
"""


def test_votes_outlive_a_kill_and_voters_who_vote_at_once(tmp_path: Path, videos: Path) -> None:
    folder, study = make(tmp_path, videos)
    command = [sys.executable, "-c", VOTE, str(folder)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    time.sleep(0.2)
    reported = set()
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        reported |= {tuple(line.split()) for line in process.communicate()[0].splitlines() if len(line.split()) == 2}
    assert reported <= {(vote.voter, vote.comparison) for vote in read_votes(folder)}
    whole = read_votes(folder)
    with (folder / VOTES_FILE).open("ab") as file:
        file.write(json.dumps({"voter": "half a li"}).encode()[:-6])  # as a kill within a write leaves it
    assert read_votes(folder) == whole
    score_all(folder, study, new_voter(study), lambda *_: 3)
    assert len(read_votes(folder)) == len(whole) + 4


def test_studies_are_found_and_bad_ones_refused(tmp_path: Path, videos: Path) -> None:
    folder, study = make(tmp_path, videos)
    (broken := tmp_path / "studies" / "broken").mkdir()
    (broken / "study.json").write_text("{")
    assert find_studies(tmp_path / "studies") == [(folder, study)]
    one = entry(videos)
    for entries, shown in [([], "lists"), ([Entry("x", one.source, {"a": one.source})], "pairs")]:
        with pytest.raises(UserError):
            create_study(tmp_path / "studies", "", shown, entries)
    missing = Entry("x", one.source, {"a": one.source, "b": Clip(tmp_path / "gone.mp4")})
    with pytest.raises(OSError):
        create_study(tmp_path / "studies", "", "lists", [missing])
    assert sorted(path.name for path in (tmp_path / "studies").iterdir()) == sorted(["broken", folder.name])


def test_a_study_is_found_without_reading_the_others(tmp_path: Path, videos: Path, monkeypatch: Any) -> None:
    from v2edit.studio import studies as module

    made = [make(tmp_path, videos, count=1) for _ in range(6)]
    studies, reads = Studies(tmp_path / "studies"), []
    monkeypatch.setattr(module, "read_study", lambda folder: reads.append(folder) or read_study(folder))
    for folder, study in made * 5:
        assert studies.of_token(study.token) == studies.get(study.id) == (folder, study)
    assert len(reads) == 6
    (folder, study), later = made[0], make(tmp_path, videos, count=1)
    assert studies.of_token(later[1].token) == later
    closed = close_study(folder)  # by another process, say
    assert closed.closed and studies.of_token(study.token) == (folder, closed)
    shutil.copytree(folder, tmp_path / "studies" / "a-copy-1")
    (tmp_path / "studies" / "broken-1").mkdir()
    for token in ("", study.token[:-1], study.id, "../x"):
        assert studies.of_token(token) is None and (studies.get(token) is None or token == study.id)
    shutil.rmtree(folder)
    assert studies.of_token(study.token) is None and studies.get("a-copy-1") is None


def test_runs_are_compared_by_what_differs_in_their_settings(sample_run: Path, tmp_path: Path) -> None:
    facts = json.loads((sample_run / "run.json").read_text())
    runs = []
    for name, change in [("a", {"mixture": 0.2}), ("b", {"mixture": 0.8}), ("c", {"mixture": 0.2})]:
        runs.append(tmp_path / name)
        shutil.copytree(sample_run, runs[-1])
        manifest = facts | {"config": facts["config"] | change}
        if name == "c":
            manifest |= {"instruction": "another"}
            (runs[-1] / "edited.mp4").unlink()  # as where it is no video that browsers play
        (runs[-1] / "run.json").write_text(json.dumps(manifest))
    entries = entries_of_runs(runs)
    assert [(one.instruction, list(one.edits)) for one in entries] == [
        (facts["instruction"], ["mixture 0.2", "mixture 0.8"]), ("another", ["mixture 0.2"]),
    ]  # fmt: skip
    assert entries[0].edits["mixture 0.8"] == Clip(runs[1] / "edited.mp4")
    assert entries[1].edits["mixture 0.2"] == Clip(runs[2] / "compare.mp4", "right")
    assert entries[0].source == Clip(runs[0] / "compare.mp4", "left")
    assert set(entries_of_runs(runs[:2], {runs[0]: "ours"})[0].edits) == {"ours", "mixture 0.8"}
    with pytest.raises(UserError, match="one label"):
        entries_of_runs(runs[:2], dict.fromkeys(runs, "x"))
    (runs[0] / "run.json").unlink()
    with pytest.raises(UserError):
        entries_of_runs(runs)


def test_a_bench_report_is_compared_by_its_methods(tmp_path: Path) -> None:
    task = primitives_tasks("reporting", 1, ["sky"])[0]
    methods = ["V2Edit", "</script>"]
    titles = ["unedited", "truth", *methods]
    frames = np.concatenate([np.full((3, 16, 16, 3), 40 * at, np.uint8) for at in range(4)], axis=2)
    film = video.write(frames, tmp_path / "film.mp4", fps=8).read_bytes()
    rows = [Row("sky", task.name, name, {"score": 0.5}) for name in methods]
    page = tmp_path / "report.html"
    page.write_text(as_html([ScoredTask(task, rows, titles, film, 0, (16, 16), 3)], Table(rows), "t", "f"))
    with entries_of_bench(page) as entries:
        assert [(one.instruction, list(one.edits)) for one in entries] == [(task.instruction, methods)]
        folder = create_study(tmp_path / "studies", "", "lists", entries)
    for one, grey in zip(read_study(folder).comparisons[0].candidates, (80, 120), strict=True):
        shown = video.read(folder / "media" / one.media.file).frames
        assert isinstance(one.media.crop, tuple)
        x, y, width, height = one.media.crop
        assert abs(shown[:, y : y + height, x : x + width].mean() - grey) < 8
    for text in ("", "<html></html>", '<script type="application/json" id="data">{"tasks": 1}</script>'):
        page.write_text(text)
        with pytest.raises(UserError, match="no report"), entries_of_bench(page):
            pass
