"""Suggested edits over real HTTP: what is asked for, what is checked, and the suite that is written."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from support.lvlm import FRAMES, KEY, SOURCE, STYLE, TOKENIZER
from support.servers import RETRY_SOON, Reply, completion, http_error, serve

from v2edit import video
from v2edit.bench.suite_files import read_suite
from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.prompts.lvlm import LVLMConfig, open_chat
from v2edit.prompts.suggest import Suggestion, is_same_edit, suggest_edits


def edit(word: str, to: str, kind: str = "appearance", **changes: str) -> dict[str, str]:
    return {
        "kind": kind, "difficulty": "easy", "instruction": f"make the {word} {to}", "source": SOURCE,
        "target": SOURCE.replace(word, to), "before": word, "after": to, **changes,
    }  # fmt: skip


RED, WHITE, CALM = edit("red", "blue"), edit("white", "black"), edit("calm", "stormy", kind="style")


def suggested(url: str, count: int, **changes: object) -> list[Suggestion]:
    with open_chat(LVLMConfig(model="m", url=url)) as chat:
        return suggest_edits(chat, FRAMES, STYLE, TOKENIZER, count, **changes)


def test_the_model_sees_the_video_and_is_told_kinds_and_number() -> None:
    with serve(completion({"edits": [RED, WHITE, CALM]})) as server:
        found = suggested(server.url, 3)
    assert [one.instruction for one in found] == ["make the red blue", "make the white black", "make the calm stormy"]
    assert found[0].line("a.mp4", "video") == {
        "video": "a.mp4", "kind": "appearance", "difficulty": "easy", "instruction": "make the red blue",
        "source_prompt": SOURCE, "target_prompt": SOURCE.replace("red", "blue"), "words": ["red", "blue"],
    }  # fmt: skip
    text = server.requests[0].last_text
    assert "Suggest 3 edits" in text and "- insertion:" in text and "- hard:" in text
    assert sum("image_url" in part for part in server.requests[0].messages[-1]["content"]) == 8


BAD = {
    "a kind that is none": (edit("red", "blue", kind="magic"), "the kinds are"),
    "no instruction": (edit("red", "blue", instruction=" "), "it has no instruction"),
    "nothing changed": (edit("red", "red"), "are the same"),
    "another video": (edit("red", "blue", target="a cat on a mat"), "share only"),
    "too long for the model": (edit("red", "blue " * 300), "too long"),
    "an edit that is there": (edit("white", "black", instruction="Make the white, black!"), "the same as"),
    "another wording of one": (edit("white", "black", instruction="paint the sail"), "the same as"),
    "no object": ("blue", "no object"),
}


@pytest.mark.parametrize(("bad", "says"), BAD.values(), ids=BAD)
def test_a_bad_edit_is_asked_for_anew_and_the_good_ones_are_kept(bad: object, says: str) -> None:
    with serve(completion({"edits": [WHITE, bad]}), completion({"edits": [CALM]})) as server:
        found = suggested(server.url, 2)
    assert [one.after for one in found] == ["black", "stormy"]
    assert says in server.requests[1].last_text and "make the white black" in server.requests[1].last_text


FAULTS = {
    "too many requests": http_error(429, "slow down", **RETRY_SOON),
    "half a response": Reply(body='{"choices": [', cuts=True),
    "no response in time": Reply(hangs=True),
    "an answer that is cut off": completion('{"edits": [{"kind": "appea', finish="length"),
    "a remark": completion("I would rather not."),
    "no list": completion({"edits": "none"}),
}


def test_faults_of_the_server_change_no_suggestion(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("V2EDIT_LVLM_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    right = completion({"edits": [RED, WHITE]})
    for fault in FAULTS.values():
        with serve(fault, right) as server, open_chat(LVLMConfig("m", server.url, timeout=0.5)) as chat:
            found = suggest_edits(chat, FRAMES, STYLE, TOKENIZER, 2)
        assert [one.after for one in found] == ["blue", "black"] and len(server.requests) == 2
    assert KEY not in caplog.text and caplog.records


def test_fewer_than_were_wanted_are_better_than_none(caplog: pytest.LogCaptureFixture) -> None:
    with serve(completion({"edits": [RED]}), endless=True) as server, caplog.at_level(logging.WARNING):
        assert len(suggested(server.url, 3)) == 1
    assert "1 of 3 edits could be used" in caplog.text
    with serve(completion({"edits": []}), endless=True) as server, pytest.raises(UserError, match="write the suite"):
        suggested(server.url, 1)


def test_edits_are_the_same_by_what_they_add() -> None:
    one, other = Suggestion(**RED), Suggestion(**edit("red", "blue", instruction="colour the boat"))
    assert is_same_edit(one, other) and not is_same_edit(one, Suggestion(**WHITE))


def test_the_command_writes_a_suite_that_the_benchmark_reads(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    for name in "ab":
        video.write(frames, tmp_path / f"{name}.mp4", fps=8)
    source = "A red ball hops on a white floor."
    one = {**edit("red", "blue"), "source": source, "target": source.replace("red", "blue")}
    words = ["suggest", str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"), "--count", "1", "--lvlm", "m"]
    with serve(completion({"edits": [one]}), completion({"edits": []}), endless=True) as server:
        assert main([*words, "--lvlm-url", server.url, "-o", str(tmp_path / "suite.jsonl")]) == 0
    printed = capsys.readouterr()
    assert "make the red blue" in printed.out and "b.mp4" in printed.err  # nothing was suggested for the second
    (line,) = read_suite(tmp_path / "suite.jsonl").lines
    assert line.path == tmp_path / "a.mp4" and line.questions and line.kind == "appearance"
    assert json.loads((tmp_path / "suite.jsonl").read_text())["video"] == "a.mp4"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["clip.mp4"], "--lvlm"),
        (["none.mp4", "--lvlm", "m"], "no such"),
        (["clip.mp4", "--lvlm", "m", "-o", "suite.csv"], ".jsonl"),
        (["clip.mp4", "--lvlm", "m", "-o", "there.jsonl"], "exists"),
        (["clip.mp4", "--lvlm", "m", "--count", "0"], "--count"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], says: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    video.write(np.zeros((2, 16, 16, 3), np.uint8), "clip.mp4", fps=8)
    Path("there.jsonl").write_text("")
    assert main(["suggest", *words]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and says in printed.err
