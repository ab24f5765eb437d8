"""Judges over suites, over real HTTP: the LVLM score, FiVE-Acc, what they cost, several of them, and going on."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.judges import SHADES, SOURCE, VIDEOS, score_by_shade, shade_of
from support.lvlm import KEY
from support.servers import RETRY_SOON, Reply, Request, completion, http_error, serve

from v2edit import video
from v2edit.bench.file_tasks import FileTask
from v2edit.bench.judging import agreement, judge_trials
from v2edit.bench.suite_files import read_suite
from v2edit.bench.tool_results import ToolTrial, list_tool_trials, parse_results
from v2edit.errors import UserError
from v2edit.metrics.lvlm_score import ASPECTS, JudgeConfig
from v2edit.metrics.question_accuracy import accuracy, make_questions


def write_images(frames: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True)
    for k, frame in enumerate(frames[:4]):
        video.write_still(frame, folder / f"{k}.png")


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[ToolTrial]:
    """Two tasks of one shade, the first with words to ask for; three tools' results of both."""
    folder = tmp_path_factory.mktemp("suite")
    lines = []
    for name in ("one", "two"):
        write_images(SOURCE, folder / name)
        lines.append({"video": name, "name": name, "source_prompt": "a swan", "target_prompt": f"a flamingo, {name}"})
        for tool, frames in VIDEOS.items():
            write_images(frames, folder / tool / name)
    lines[0]["words"] = ["a swan", "a flamingo"]
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tasks = [FileTask(line) for line in read_suite(folder).lines]
    return list_tool_trials(tasks, parse_results([f"{tool}={folder / tool}" for tool in VIDEOS]))


def answer(request: Request) -> Reply:
    """Score a comparison by shade; see a flamingo and no swan in what "ours" made, the source's swan elsewhere. What
    was answered before, and was of no use, does not matter."""
    asked = {**request.body, "messages": request.messages[:2]}
    request = replace(request, text=json.dumps(asked))
    text = request.last_text
    if "Instruction:" in text:
        return score_by_shade(request)
    is_ours = shade_of(next(part for part in request.messages[-1]["content"] if "image_url" in part)) == "ours"
    if "a)" in text:
        return completion({"answer": "b" if is_ours else "a"})
    return completion({"answer": "yes" if ("flamingo" in text) == is_ours else "no"})


def ignore(done: int, total: int, what: str) -> None:
    """Take no notice of progress."""


def config(url: str, **changes: object) -> JudgeConfig:
    return JudgeConfig(**{"model": "m", "url": url, "queries": 2, "frames": 2} | changes)


def run(trials: list[ToolTrial], url: str, cache: Path, models: tuple[str, ...] = ("m",)):
    return judge_trials(trials, (), config(url), models, cache, lambda done, total, what: None)


def test_all_methods_are_judged_and_asked_about(trials, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serve(answer, endless=True) as server, caplog.at_level(logging.WARNING):
        figures, notes = run(trials, server.url, tmp_path)
        assert (
            "judging 2 tasks by m: 4 queries to ask (of 4)" in caplog.text and "9 questions of FiVE-Acc" in caplog.text
        )
        assert len(server.requests) == 2 * 2 + 3 * 3  # queries of both tasks; three questions a tool, of one
        caplog.clear()
        assert run(trials, server.url, tmp_path) == (figures, notes) and len(server.requests) == 13
        assert "0 queries to ask (of 4)" in caplog.text and "0 questions" in caplog.text
    assert notes == [] and len(figures) == 6
    for (method, task), found in figures.items():
        assert found["overall"] == found["quality"] == SHADES[method] // 3 and found["± overall"] == 0
        right = float(method == "ours")
        assert {found.get(f"five_{one}") for one in ("acc", "yes_no", "choice", "any", "all")} == (
            {right} if task == "one" else {None}
        )


def test_a_judge_that_falls_silent_is_asked_only_for_what_is_missing(trials, tmp_path: Path) -> None:
    with serve(answer, answer, answer, http_error(401, "no key"), answer, endless=True) as server:
        with pytest.raises(UserError):
            run(trials, server.url, tmp_path)
        run(trials, server.url, tmp_path)
    assert len(server.requests) == 13 + 1  # the one that was refused


FAULTS = {
    "too many requests": http_error(429, "slow down", **RETRY_SOON),
    "a server that is overloaded": http_error(503, "later", **RETRY_SOON),
    "half a response": Reply(body='{"choices": [', cuts=True),
    "no response in time": Reply(hangs=True),
    "an answer that is cut off": completion('{"A": {"quality": 5', finish="length"),
    "a remark": completion("I would rather not."),
    "a score out of range": completion({letter: dict.fromkeys(ASPECTS, 500) for letter in "ABC"}),
    "a video too few": completion({"A": dict.fromkeys(ASPECTS, 50)}),
}


def test_faults_of_a_judge_change_no_score(trials, tmp_path: Path, monkeypatch, caplog) -> None:
    """All of them one after the other, each before a right answer; the key is in no file and no line."""
    monkeypatch.setenv("V2EDIT_LVLM_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    seen: list[Request] = []

    def answer_after_faults(request: Request) -> Reply:
        seen.append(request)
        number = len(seen) - 1
        return list(FAULTS.values())[number // 2] if number % 2 == 0 and number < 2 * len(FAULTS) else answer(request)

    with serve(answer_after_faults, endless=True) as server:
        faulty, _ = judge_trials(trials, (), config(server.url, timeout=0.5, queries=6), ("m",), tmp_path / "a", ignore)
        assert len(seen) == 2 * 6 + 9 + len(FAULTS)
        assert all(request.headers["Authorization"] == f"Bearer {KEY}" for request in seen)
    with serve(answer, endless=True) as server:
        assert faulty == judge_trials(trials, (), config(server.url, queries=6), ("m",), tmp_path / "b", ignore)[0]
    kept = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(kept) == 2 * (2 * 6 + 9) and not [text for text in (*kept, caplog.text) if KEY in text]


def test_several_judges_are_averaged_and_their_agreement_is_told(trials, tmp_path: Path) -> None:
    def differing(request: Request) -> Reply:
        is_second = request.body["model"] == "n" and "Instruction:" in request.last_text
        return score_by_shade(request, jitter=10) if is_second else answer(request)

    with serve(differing, endless=True) as server:
        server.models = ["m", "n"]
        figures, (note,) = run(trials, server.url, tmp_path, ("m", "n"))
    assert figures["ours", "one"]["overall"] == SHADES["ours"] // 3 + 5
    assert "correlate by 1.00" in note and "in 2 of 2 tasks the same method is best" in note


def test_judges_that_disagree() -> None:
    first = {("a", "1"): {"overall": 10.0}, ("b", "1"): {"overall": 90.0}, ("a", "2"): {"overall": 50.0},
             ("b", "2"): {"overall": 60.0}}  # fmt: skip
    second = {key: {"overall": 100 - value["overall"]} for key, value in first.items()}
    (note,) = agreement({"m": first, "n": second})
    assert "correlate by -1.00" in note and "in 0 of 2 tasks" in note


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("no", "yes", "b"), (1, 1, 1, 1, 1)),
        (("yes", "yes", "b"), (0.5, 0, 1, 1, 0)),
        (("no", "no", "a"), (0, 0, 0, 0, 0)),
        (("no", "yes", "a"), (0.5, 1, 0, 1, 0)),
    ],
)
def test_five_acc_by_hand(answers, expected, tmp_path: Path) -> None:
    class Asked:
        source, target, choice = "Is it a swan?", "Is it a flamingo?", "a) A swan b) A flamingo"

    questions = make_questions(Asked(), [], tmp_path, "judge")
    found = accuracy(questions, dict(zip(("source", "target", "choice"), answers, strict=True)))
    assert tuple(found.values()) == expected


def test_an_answer_with_more_in_it_counts_and_another_is_asked_again(tmp_path: Path) -> None:
    from v2edit.prompts.lvlm import open_chat

    class Asked:
        source, target, choice = None, "Is it a flamingo?", "a) A swan b) A flamingo"

    with serve(completion({"answer": "perhaps"}), completion({"answer": "B) A flamingo"})) as server:
        with open_chat(config(server.url).lvlm) as chat:
            questions = make_questions(Asked(), [], tmp_path, "judge")
            assert questions.keys() == {"target", "choice"}
            assert questions["choice"].ask(chat) == "b" == questions["choice"].cached()
        assert re.search("neither b nor a", server.requests[1].text)
