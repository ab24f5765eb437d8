"""Suites of files: what a line may say, the layouts of published benchmarks, and which tasks come of them."""

import csv
import json
import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from v2edit import video
from v2edit.bench.file_tasks import FileTask, select_tasks
from v2edit.bench.lossless import read_lossless, write_lossless
from v2edit.bench.suite_files import SuiteLine, read_suite
from v2edit.errors import UserError

PAIR = {"source_prompt": "a red ball", "target_prompt": "a blue ball"}


def frames_of(seed: int, count: int = 4, height: int = 16, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips a.mp4, b.mp4, a mask, a text and a broken file."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate("ab"):
        video.write(frames_of(seed), folder / f"{name}.mp4", fps=8)
    video.write_still(np.pad(np.full((8, 12, 3), 255, np.uint8), ((0, 8), (0, 12), (0, 0))), folder / "mask.png")
    (folder / "notes.txt").write_text("no video")
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:200])
    return folder


def write_lines(folder: Path, *lines: object, name: str = "suite.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def read_lines(folder: Path, *lines: object) -> list[SuiteLine]:
    return read_suite(write_lines(folder, *lines)).lines


GOOD = {"video": "a.mp4", **PAIR}
BAD = {
    "no JSON": ('{"video": "a.mp4",', "it is no JSON"),
    "a list": (["a.mp4"], "expected an object"),
    "a number": ("7", "expected an object"),
    "a key twice": ('{"video": "a.mp4", "video": "b.mp4"}', "twice"),
    "nothing": ({}, '"video" or "scene" says what to edit, and neither is given'),
    "both": ({**GOOD, "scene": "a.mp4"}, "both are given"),
    "no such video": ({**GOOD, "video": "c.mp4"}, "there is no such file"),
    "an empty path": ({**GOOD, "video": ""}, "there is no such file"),
    "a path of no text": ({**GOOD, "video": "a\0.mp4"}, "there is no such file"),
    "no video": ({**GOOD, "video": "notes.txt"}, "notes.txt"),
    "a broken video": ({**GOOD, "video": "broken.mp4"}, "broken.mp4"),
    "an unknown field": ({**GOOD, "taget_prompt": "x"}, 'did you mean "target_prompt"?'),
    "a number for a path": ({**GOOD, "video": 3}, '"video" is 3, expected a valid string'),
    "no such mask": ({**GOOD, "mask": "m.png"}, '"mask" is'),
    "no such target": ({**GOOD, "target": "t.mp4"}, '"target" is'),
    "half a pair": ({"video": "a.mp4", "source_prompt": "a red ball"}, '"target_prompt" is empty'),
    "an empty prompt": ({**GOOD, "source_prompt": " "}, '"source_prompt" is empty'),
    "no texts": ({"video": "a.mp4"}, "none is given"),
    "nothing to change": ({**GOOD, "target_prompt": "a red ball"}, "nothing would change"),
    "a prompt with control characters": ({**GOOD, "target_prompt": "a \x1b[2J"}, "no text"),
    "one word": ({**GOOD, "words": ["a ball"]}, "expected two"),
    "an empty word": ({**GOOD, "words": ["a ball", ""]}, "expected two"),
    "no scene": ({**PAIR, "scene": "a.mp4"}, "finds them first"),
    "an empty kind": ({**GOOD, "kind": " "}, '"kind" is empty'),
    "a negative seed": ({**GOOD, "seed": -1}, "expected 0 or more"),
    "a seed of text": ({**GOOD, "seed": "one"}, '"seed" is'),
    "a name without letters": ({**GOOD, "name": "../"}, "expected letters or digits"),
    "a name twice": ({**GOOD, "name": "First"}, "line 1 has that name too"),
}


def test_each_bad_line_is_named_and_the_rest_is_read(clips: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [content for content, _ in BAD.values()]
    path = write_lines(clips, {**GOOD, "name": "first"}, *lines, {**GOOD, "video": "b.mp4"})
    with caplog.at_level(logging.WARNING):
        suite = read_suite(path)
    assert [line.name for line in suite.lines] == ["first", "b-edit"]
    assert len(suite.mistakes) == len(BAD) and caplog.messages == suite.mistakes
    for number, (mistake, (case, (_, says))) in enumerate(zip(suite.mistakes, BAD.items(), strict=True), start=2):
        assert mistake.startswith(f"{path}, line {number}: ") and says in mistake and "\n" not in mistake, case


def test_a_suite_without_a_good_line_is_refused(clips: Path) -> None:
    for lines, says in ([BAD["both"][0]], "line 1: .*both are given"), ([], "has no tasks"):
        with pytest.raises(UserError, match=says):
            read_lines(clips, *lines)
    for path, says in ((clips / "none", "there is no suite"), (clips, "is no suite"), (clips / "a.mp4", "no file of")):
        with pytest.raises(UserError, match=says):
            read_suite(path)


def test_what_a_line_says_is_what_a_task_is(clips: Path) -> None:
    full = {**GOOD, "name": "my task", "kind": "recolour", "instruction": "make it blue", "mask": "mask.png",
            "target": "b.mp4", "words": ["a red ball", "a blue ball"], "seed": 3}  # fmt: skip
    (line,) = read_lines(clips, full)
    assert (line.name, line.kind, line.instruction, line.seed) == ("my-task", "recolour", "make it blue", 3)
    assert line.questions and line.questions.target == "Is there a blue ball in the video?"
    task = FileTask(line, frames=3)
    assert task.source.shape == (3, 16, 24, 3) and task.truth is not None and task.truth.shape == task.source.shape
    assert task.mask is not None and np.array_equal(task.mask[0, :8, :12], np.ones((8, 12), bool))
    assert not task.mask[:, 8:].any() and task.fps == 8
    (plain,) = read_lines(clips, {"video": "a.mp4", "instruction": "make it blue"})
    assert FileTask(plain).truth is FileTask(plain).mask is None and plain.pair is None


def test_the_same_suite_in_three_formats(clips: Path) -> None:
    tasks = [{**GOOD, "kind": "one", "words": ["a", "b"], "seed": 5}, {**GOOD, "video": "b.mp4", "kind": "two, or so"}]
    with (clips / "same.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["video", "source_prompt", "target_prompt", "kind", "words", "seed"])
        rows.writeheader()
        rows.writerows({**task, "words": " | ".join(task.get("words", []))} for task in tasks)
    (clips / "same.json").write_text(json.dumps({"tasks": tasks}))
    write_lines(clips, *tasks, name="same.jsonl")
    first, *others = (read_suite(clips / f"same.{end}").lines for end in ("jsonl", "json", "csv"))
    assert len(first) == 2 and first == others[0] == others[1]


def test_names_are_made_of_clips_and_kinds_and_kinds_are_selected(clips: Path) -> None:
    lines = read_lines(clips, GOOD, {**GOOD, "kind": "new look"}, GOOD, {**GOOD, "video": "b.mp4"})
    assert [line.name for line in lines] == ["a-edit", "a-new-look", "a-edit-2", "b-edit"]
    assert [task.name for task in select_tasks(lines, None, 2)] == ["a-edit", "a-edit-2", "a-new-look"]
    assert [task.name for task in select_tasks(lines, None, 9, ["new-look"])] == ["a-new-look"]
    for wrong in (("levitate",), 1), ((), 0):
        with pytest.raises(UserError):
            select_tasks(lines, None, wrong[1], wrong[0])


def test_a_tasks_identity_is_what_its_edit_depends_on(clips: Path) -> None:
    (line,) = read_lines(clips, {**GOOD, "mask": "mask.png", "name": "x"})
    (other,) = read_lines(clips, {**GOOD, "target": "b.mp4", "kind": "else"})
    assert FileTask(line).identity == FileTask(other).identity  # another mask measures anew and edits nothing anew
    (changed,) = read_lines(clips, {**GOOD, "video": "b.mp4"})
    assert len({FileTask(line).identity, FileTask(line, 2).identity, FileTask(changed).identity}) == 3


@pytest.mark.parametrize("size", [(16, 24), (15, 23), (1, 1)])
def test_results_are_kept_to_the_bit(size: tuple[int, int], tmp_path: Path) -> None:
    frames = frames_of(1, 3, *size)
    write_lossless(frames, tmp_path / "x.mkv", Fraction(30000, 1001))
    assert np.array_equal(read_lossless(tmp_path / "x.mkv"), frames)


# --- layouts of published suites ------------------------------------------------------------------


def images(folder: Path, seed: int, count: int = 2) -> None:
    folder.mkdir(parents=True)
    for k, frame in enumerate(frames_of(seed, count)):
        video.write_still(frame, folder / f"{k + 1:05}.png")


def test_five_bench(tmp_path: Path) -> None:
    images(tmp_path / "data" / "images" / "0001_bus", 1)
    images(tmp_path / "data" / "bmasks" / "0001_bus", 2)
    (tmp_path / "data" / "edit_prompt").mkdir()
    task = {
        "editing_type_id": "1_rigid", "video_name": "0001_bus", "save_dir": "bus_to_truck", "source_prompt": "a [bus]",
        "target_prompt": "a [truck]", "multiple_choice_question": "What is it? a) A bus b) A truck",
        "source_yes_no_question": "Is it a bus?", "target_yes_no_question": "Is it a truck?",
    }  # fmt: skip
    bad = {key: value for key, value in task.items() if key != "target_prompt"}
    (tmp_path / "data" / "edit_prompt" / "edit1_FiVE.json").write_text(json.dumps([task, bad, 7]))
    suite = read_suite(tmp_path)
    (line,) = suite.lines
    assert line.pair and (line.pair.source, line.pair.target) == ("a bus", "a truck")
    assert line.kind == "object replacement (rigid)" and line.mask and line.mask.name == "0001_bus"
    assert line.questions and line.questions.choice.endswith("b) A truck") and "0001_bus/bus_to_truck" in line.aliases
    assert len(suite.mistakes) == 2 and "edit1_FiVE.json, task 2: it has no field 'target_prompt'" in suite.mistakes[0]


def test_loveu_tgve(tmp_path: Path) -> None:
    for part, name in (("DAVIS_480p", "judo"), ("videvo_480p", "swans")):
        (tmp_path / part / "480p_videos").mkdir(parents=True)
        video.write(frames_of(3), tmp_path / part / "480p_videos" / f"{name}.mp4", fps=8)
    head = ["Video name", "Our GT caption", "Style Change Caption", "Object Change Caption",
            "Background Change Caption", "Multiple Changes Caption"]  # fmt: skip
    rows = [["DAVIS Videos:"], ["judo", "two men", *(f"{kind} men" for kind in "sobm")], [],
            ["Youtube Videos:"], ["lost", "it", *"sobm"], [],
            ["Videvo Videos:"], ["swans", "swans", *"sob", ""]]  # fmt: skip
    with (tmp_path / "LOVEU-TGVE-2023_Dataset.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    suite = read_suite(tmp_path)
    assert [line.name for line in suite.lines[:4]] == ["judo-style", "judo-object", "judo-background", "judo-multiple"]
    assert suite.lines[1].pair and suite.lines[1].pair.target == "o men"
    assert "DAVIS_480p/judo/object" in suite.lines[1].aliases
    assert len(suite.lines) == 7 and len(suite.mistakes) == 5  # of the lost video four, and an edit without a caption
    assert read_suite(tmp_path / "LOVEU-TGVE-2023_Dataset.csv").lines == suite.lines


def test_ivebench_and_openve_bench(tmp_path: Path) -> None:
    (tmp_path / "ive" / "ivebenchdb_mp4_short").mkdir(parents=True)
    video.write(frames_of(4), tmp_path / "ive" / "ivebenchdb_mp4_short" / "0001.mp4", fps=8)
    task = {"id": 1, "src_video_name": "0001.mp4", "category": "style", "subcategory": "x", "source_prompt": "a dog",
            "edit_prompt": "make it a cat", "target_prompt": "a cat"}  # fmt: skip
    (tmp_path / "ive" / "ivebench_prompt_short.json").write_text(json.dumps([task]))
    (line,) = read_suite(tmp_path / "ive").lines
    assert (line.kind, line.instruction, line.aliases) == ("style", "make it a cat", ("0001",))
    assert read_suite(tmp_path / "ive" / "ivebench_prompt_short.json").lines == [line]

    (tmp_path / "ove" / "videos").mkdir(parents=True)
    video.write(frames_of(5), tmp_path / "ove" / "videos" / "0000_global_style_x.mp4", fps=8)
    table = 'edited_type,prompt,original_video\nglobal_style,"Paint it, please",videos/0000_global_style_x.mp4\n'
    (tmp_path / "ove" / "benchmark_videos.csv").write_text(table)
    (line,) = read_suite(tmp_path / "ove").lines
    assert (line.kind, line.instruction, line.pair) == ("global_style", "Paint it, please", None)
    saved = table.replace("please", "caf\u00e9").encode("cp1252")  # as a spreadsheet does
    (tmp_path / "ove" / "benchmark_videos.csv").write_bytes(saved + b"global_style,,\n")
    suite = read_suite(tmp_path / "ove")
    assert suite.lines[0].instruction == "Paint it, caf\u00e9" and len(suite.mistakes) == 1


def test_davis(tmp_path: Path) -> None:
    images(tmp_path / "JPEGImages" / "480p" / "bear", 6)
    images(tmp_path / "Annotations" / "480p" / "bear", 7)
    with pytest.raises(UserError, match="no edits"):
        read_suite(tmp_path)
    write_lines(tmp_path, {"video": "bear", **PAIR}, {"video": "lynx", **PAIR}, name="tasks.jsonl")
    suite = read_suite(tmp_path)
    (line,) = suite.lines
    assert line.path == tmp_path / "JPEGImages/480p/bear" and line.mask == tmp_path / "Annotations/480p/bear"
    assert line.aliases == ("bear",) and len(suite.mistakes) == 1


FIVE = {"editing_type_id": "1", "video_name": "bus", "source_prompt": "a [bus]", "target_prompt": "a [truck]"}
IVE = {"id": 1, "src_video_name": "1.mp4", "source_prompt": "a", "edit_prompt": "b", "target_prompt": "c"}
LOVEU = "Video name,Our GT caption,Style Change Caption,Object Change Caption\n"
OPENVE = "edited_type,prompt,original_video\n"
FIVE_FILE, IVE_FILE, LOVEU_FILE, OPENVE_FILE = (
    "edit_prompt/edit1_FiVE.json", "ivebench_prompt_short.json", "LOVEU-TGVE.csv", "benchmark_videos.csv",
)  # fmt: skip
MALFORMED = {
    "FiVE: no JSON": (FIVE_FILE, "[{", "cannot be read"),
    "FiVE: an object": (FIVE_FILE, FIVE, "holds no list of tasks"),
    "FiVE: texts": (FIVE_FILE, ["bus"], "it is no object"),
    "FiVE: no source prompt": (FIVE_FILE, [{**FIVE, "source_prompt": None}], "a field is no text"),
    "FiVE: no clip": (FIVE_FILE, [{key: FIVE[key] for key in FIVE if key != "video_name"}], "no field 'video_name'"),
    "FiVE: a lost clip": (FIVE_FILE, [FIVE], "no such file"),
    "FiVE: half the questions": (
        FIVE_FILE,
        [{**FIVE, "multiple_choice_question": "a or b?"}],
        "target_yes_no_question",
    ),
    "FiVE: too deep": (FIVE_FILE, "[" * 100_000, "cannot be read"),
    "LOVEU: a spreadsheet": ("LOVEU-TGVE.xlsx", "PK", "save it as .csv"),
    "LOVEU: a lost clip": (LOVEU_FILE, f"{LOVEU}judo,two men,a,b\n", "no such file"),
    "LOVEU: no captions": (LOVEU_FILE, f"{LOVEU}judo,,a,b\n", "has no tasks"),
    "LOVEU: headings alone": (LOVEU_FILE, f"{LOVEU}DAVIS Videos:,,,\n", "has no tasks"),
    "IVEBench: no UTF-8": (IVE_FILE, b"[{\xff", "cannot be read"),
    "IVEBench: no number": (IVE_FILE, [{key: IVE[key] for key in IVE if key != "id"}], "no field 'id'"),
    "IVEBench: a number for a clip": (IVE_FILE, [{**IVE, "src_video_name": 7}], "a field is no text"),
    "IVEBench: a lost clip": (IVE_FILE, [IVE], "no such file"),
    "OpenVE: no clip": (OPENVE_FILE, f"{OPENVE}style,paint it,\n", "no such file"),
    "OpenVE: a lost clip": (OPENVE_FILE, f"{OPENVE}style,paint it,videos/x.mp4\n", "no such file"),
    "OpenVE: no lines": (OPENVE_FILE, OPENVE, "has no tasks"),
    "OpenVE: a line that is cut": (OPENVE_FILE, f"{OPENVE}style\n", "no such file"),
    "DAVIS: no edits": ("JPEGImages/480p/bear/0.png", b"", "has DAVIS's clips and no edits"),
    "DAVIS: another sequence": ("tasks.jsonl", json.dumps({"video": "lynx", **PAIR}), "no such file"),
}


@pytest.mark.parametrize(("file", "content", "says"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_published_suites_are_one_line(file: str, content: object, says: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_suite(tmp_path)
    assert says in str(error.value) and "\n" not in str(error.value)
