"""Files of tasks: what a line may hold, and how mistakes are reported."""

import json
import os
import tracemalloc
from dataclasses import fields
from pathlib import Path

import pytest
from support.batch import PROMPTS, write_clip, write_tasks

from v2edit.batch.command import EditBatch, run_batch
from v2edit.batch.tasks import MAX_LINE_BYTES, MAX_TASKS, TaskDefaults, TaskLine, read_tasks
from v2edit.cli.app import main
from v2edit.editing import EditConfig
from v2edit.errors import UserError
from v2edit.files import MAX_JSON_BYTES
from v2edit.jobs.scene import SceneEdit


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def test_lines_become_tasks(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").touch()
    path = write_tasks(
        tmp_path / "tasks.jsonl",
        "\ufeff" + json.dumps({"video": "in/a.mp4", "instruction": "make the ball blue", "subtasks": 3, "seed": 7}),
        "",
        {"scene": str(tmp_path / "in"), "target_prompt": "a cube", "name": "räume 1", "alpha": 1, "beta": None},
        {"video": "in/a.mp4", "instruction": "Make the ball BLUE!"},
    )
    first, second, third = read_tasks(path, TaskDefaults(EditConfig(steps=9, alpha=0.5)))
    assert (first.line, first.kind, first.path) == (1, "video", tmp_path / "in" / "a.mp4")
    assert first.config == EditConfig(steps=9, alpha=0.5, subtasks=3, seed=7)
    assert (second.line, second.kind, second.path, second.name) == (3, "scene", tmp_path / "in", "räume 1")
    assert second.config == EditConfig(steps=9, alpha=1.0)
    assert (first.name, third.name) == ("a-make-the-ball-blue", "a-make-the-ball-blue-2")


def test_every_setting_of_an_edit_may_stand_in_a_line() -> None:
    assert {setting.name: setting.default for setting in fields(EditConfig)}.items() <= {
        name: field.default for name, field in TaskLine.model_fields.items()
    }.items()


def test_options_are_those_of_one_edit() -> None:
    """The same groups, so that defaults and help texts are the same."""
    batch, edit = ({option.name: option.default for option in fields(job)} for job in (EditBatch, SceneEdit))
    assert {name: batch[name] for name in ("lvlm", "model_options", "config", "fit")}.items() <= edit.items()


# A line with a mistake, and the field, the value and the hints that its message must name.
A = '"video": "a.mp4"'
MISTAKES = {
    "no JSON": ("{", ["JSON"]),
    "no object": ('["a.mp4"]', ['["a.mp4"]', '{"video"']),
    "a key twice": (f'{{{A}, "seed": 1, "seed": 2}}', ["'seed'", "twice"]),
    "an unknown key": (f'{{{A}, "subtask": 3}}', ["'subtask'", '"subtasks"']),
    "nothing to edit": ('{"instruction": "make it blue"}', ['"video"', '"scene"', "neither"]),
    "two things to edit": (f'{{{A}, "scene": "a.mp4"}}', ["both"]),
    "no such file": ('{"video": "b.mp4"}', ["b.mp4", "no such file"]),
    "no path at all": ('{"video": "a\\u0000.mp4"}', ["no such file"]),
    "a path that is too long": (json.dumps({"video": "a" * 5000}), ["no such file"]),
    "a number as text": (f'{{{A}, "subtasks": "3"}}', ['"subtasks"', "'3'", "integer"]),
    "a fraction": (f'{{{A}, "steps": 2.5}}', ['"steps"', "2.5", "integer"]),
    "null for a number": (f'{{{A}, "steps": null}}', ['"steps"', "None", "integer"]),
    "an unknown choice": (f'{{{A}, "solver": "euler"}}', ['"solver"', "'euler'", "'auto', 'ddim'"]),
    "half a character in a name": (f'{{{A}, "in\\ud83d": "b"}}', ["'in\\ud83d'"]),
    "half a character": (f'{{{A}, "instruction": "\\ud800"}}', ['"instruction"', "'\\ud800'"]),
    "out of range": (f'{{{A}, "subtasks": 9}}', ['"subtasks"', "9", "1 to 6"]),
    "not a number": (f'{{{A}, "alpha": NaN}}', ['"alpha"', "nan", "0.0 to 1.0"]),
    "two settings at odds": (f'{{{A}, "alpha": 0.2, "beta": 0.3}}', ['"beta"', "0.3", '"alpha"', "0.2"]),
    "no source prompt": (f'{{{A}, "instruction": "make it blue"}}', ['"source_prompt"']),
    "no change": (f'{{{A}, "source_prompt": "a ball"}}', ['"target_prompt"']),
    "an instruction not of the world": (f'{{{A}, "source_prompt": "a", "instruction": "fly"}}', ['"target_prompt"']),
    **{
        f"a name that is {name!r:.20}": (f'{{{A}, "name": {json.dumps(name)}}}', ['"name"', f"{name!r:.50}"])
        for name in ("", ".", "..", "../a", "a/b", "/a", "a\\b", ".hidden", "a\nb", "a\x00", "a\u202eb", " a", "é" * 61,
                     "results.jsonl", "INDEX.html", "errors")
    },
}  # fmt: skip


@pytest.mark.parametrize(("line", "facts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_runs(line, facts, tiny_model, tmp_path) -> None:
    (tmp_path / "a.mp4").touch()
    path = write_tasks(tmp_path / "tasks.jsonl", {"video": "a.mp4"} | PROMPTS, line)
    with pytest.raises(UserError) as caught:
        run_batch(path, out=tmp_path / "out", model=str(tiny_model))
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ") and message.isprintable()
    assert [fact for fact in facts if fact not in message] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "tasks.jsonl"]


def test_several_mistakes_are_listed_together(tiny_model, tmp_path, capsys) -> None:
    (tmp_path / "a.mp4").touch()
    path = write_tasks(tmp_path / "tasks.jsonl", "{", {"video": "a.mp4"} | PROMPTS, *[{"video": "b.mp4"}] * 30)
    assert main(["batch", str(path), "-o", str(tmp_path / "out"), "--model", str(tiny_model)]) == 2
    *notes, last = capsys.readouterr().err.splitlines()
    assert len(notes) == 20 and f"{path}, line 1: " in notes[0]
    assert last.startswith(f"v2edit: error: 31 lines of {path} ") and "20" in last
    assert not (tmp_path / "out").exists()


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tasks(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("Räume", "RÄUME"), ("é", "e\u0301"), ("straße", "STRASSE")])
def test_names_that_are_equal_on_some_file_system(first, second, tmp_path) -> None:
    (tmp_path / "a.mp4").touch()
    path = write_tasks(tmp_path / "tasks.jsonl", *({"video": "a.mp4", "name": name} for name in (first, "b", second)))
    assert "line 3: " in (message := refused(path)) and "line 1 " in message


def test_generated_names_are_unique_and_stay_the_same(tmp_path) -> None:
    (tmp_path / f"{'long' * 50}.mp4").touch()
    video = {"video": f"{'long' * 50}.mp4", "instruction": "make it blue"}
    (tmp_path / "a.mp4").touch()
    short = {"video": "a.mp4", "instruction": "make it blue"}
    lines = [short, video, short | {"name": "a-make-it-blue-2"}, short, video, {"video": "a.mp4", "target_prompt": "…"}]
    tasks = read_tasks(write_tasks(tmp_path / "tasks.jsonl", *lines))
    names = [task.name for task in tasks]
    assert (names[0], *names[2:4], names[5]) == ("a-make-it-blue", "a-make-it-blue-2", "a-make-it-blue-3", "a")
    assert len(set(names)) == 6 and max(map(len, names)) == 120
    assert [task.name for task in read_tasks(tmp_path / "tasks.jsonl")] == names


def test_files_that_are_no_file_of_tasks(tmp_path) -> None:
    path = tmp_path / "tasks.jsonl"
    assert "no such file" in refused(path)
    assert "is no file of tasks" in refused(tmp_path)
    assert "is no file of tasks" in refused(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")
    assert "is no file of tasks" in refused(tmp_path / "pipe")  # and is not waited for
    path.write_text("\n \n")
    assert "has no tasks" in refused(path)
    path.write_bytes(b'{"video": "a.mp4"}\n\xff\n')
    assert "line 2: it is not UTF-8" in refused(path)


def test_hostile_files_of_tasks_take_no_memory(tmp_path) -> None:
    path = tmp_path / "tasks.jsonl"
    hostile = {
        "bytes": lambda file: file.truncate(1 << 33),  # sparse: it takes no room
        "longer than": lambda file: file.write(b"[" * MAX_JSON_BYTES),
        "nested too deeply": lambda file: file.write(b"[" * MAX_LINE_BYTES),
        "no JSON": lambda file: file.write(b'{"seed": ' + b"9" * 60_000 + b"}"),
        f"more than {MAX_TASKS:,} tasks": lambda file: file.write(b"1\n" * (MAX_TASKS + 1)),
    }
    for fact, write in hostile.items():
        with path.open("wb") as file:
            write(file)
        tracemalloc.start()
        message = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert fact in message and len(message) < 500
        assert peak < 48 * 2**20, fact
