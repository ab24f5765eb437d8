"""Runs and a bench report to compare blindly, without a model: clips that grow brighter, with names none may see."""

import json
from pathlib import Path

import numpy as np

from support.studio import Answer, Client
from v2edit.bench.page import as_html
from v2edit.bench.report import Table
from v2edit.bench.scoring import Row, ScoredTask
from v2edit.bench.tasks import primitives_tasks
from v2edit.video import Video, write, write_compare

LABELS = ("ours-of-the-paper", "rival-method", "third-method")
SECRETS = (*LABELS, "unnamed-run", "mixture", "0.25", "other-model")  # of which nothing may reach a voter
FRAMES = 3
ASPECTS = ("quality", "preservation", "fulfilment")


def make_runs(folder: Path, instructions: tuple[str, ...] = ("make it lighter", "make it darker")) -> list[str]:
    """Write the runs of each instruction, one a label, into a studio's folder; return their names."""
    brighter = 15 * np.arange(FRAMES, dtype=np.uint8)[:, None, None, None]
    source, names = np.full((FRAMES, 32, 32, 3), 60, np.uint8) + brighter, []
    for number, instruction in enumerate(instructions):
        for at, label in enumerate(LABELS):
            run = folder / f"unnamed-run-{label}-{number}"
            run.mkdir(parents=True)
            edited = source + np.uint8(30 + 40 * at)
            write(Video(edited, 8), run / "edited.mp4")
            write_compare(source, edited, run / "compare.mp4", 8)
            facts = {
                "status": "done", "kind": "edit", "started": f"2026-01-0{at + 1}T00:00:00+00:00",
                "instruction": instruction, "input": {"path": "clip.mp4", "sha256": "0" * 64},
                "prompts": {"source": "a", "target": "b"}, "model": {"name": "other-model"},
                "config": {"mixture": 0.25 * (at + 1)},
            }  # fmt: skip
            (run / "run.json").write_text(json.dumps(facts))
            names.append(run.name)
    return names


def make_report(folder: Path) -> str:
    """Write a bench folder with a report into a studio's folder; return its name."""
    tasks, place = primitives_tasks("reporting", 2, ["sky"]), folder / "bench-of-methods"
    (place / ".bench").mkdir(parents=True)
    titles = ["unedited", "truth", *LABELS[:2]]
    frames = np.concatenate([np.full((3, 16, 16, 3), 40 * at, np.uint8) for at in range(4)], axis=2)
    film = write(frames, place / "film.mp4", fps=8)
    scored, rows = [], []
    for task in tasks:
        own = [Row("sky", task.name, name, {"score": 0.5}) for name in LABELS[:2]]
        scored.append(ScoredTask(task, own, titles, film.read_bytes(), 0, (16, 16), 3))
        rows += own
    film.unlink()
    (place / "report.html").write_text(as_html(scored, Table(rows), "a report", "facts"))
    return place.name


class Voter:
    """Someone with a study's link and nothing else, who notes all that comes back."""

    def __init__(self, client: Client, link: str) -> None:
        self.client, self.link, self.number = Client(client.port, client.folder), link, ""
        self.seen: list[Answer] = []

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        answer = self.client.ask(method, path, body)
        self.seen.append(answer)
        return answer

    def ballot(self) -> dict:
        answer = self.ask("GET", f"{self.link}/ballot" + (f"?voter={self.number}" if self.number else ""))
        assert answer.status == 200, answer
        self.number = answer.json["voter"]
        return answer.json

    def vote(self, ballot: dict, score: int = 3, **changes: object) -> Answer:
        keys = [one["key"] for one in ballot["comparison"]["candidates"]]
        scores = {key: {question["name"]: score for question in ballot["questions"]} for key in keys}
        return self.ask("POST", f"{self.link}/votes", {"voter": self.number, "keys": keys, "scores": scores} | changes)

    def vote_all(self, score: int) -> int:
        """Score all ballots; return how many there were."""
        ballot, count = self.ballot(), 0
        while ballot["comparison"]:
            answer = self.vote(ballot, score)
            assert answer.status == 200, answer
            ballot, count = answer.json, count + 1
        return count
