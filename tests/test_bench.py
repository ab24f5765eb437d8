"""The benchmark: its tasks and methods, its statistics by hand, and whole runs by real processes at tiny size."""

import base64
import csv
import fcntl
import json
import math
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from support.bench import Page, compare, compare_with_forks, results_in
from support.processes import SERVER, PreloadedPool

import v2edit
from v2edit import video
from v2edit.bench.command import BenchOptions, BenchReport
from v2edit.bench.methods import REFERENCES, V2Edit, table_c
from v2edit.bench.page import as_html
from v2edit.bench.report import BootstrapMean, Table, as_csv, as_markdown, bootstrap_mean, pool_singles
from v2edit.bench.scenes import SceneTask
from v2edit.bench.scoring import Row, ScoredTask
from v2edit.bench.selection import slug, sweep_methods, with_field
from v2edit.bench.suites import make_suite
from v2edit.bench.tasks import FIRST_SEED, BenchTask, primitives_tasks
from v2edit.bench.trials import code_digest
from v2edit.cli.app import main
from v2edit.editing import EditConfig
from v2edit.errors import UserError
from v2edit.primitives.edits import KINDS

# --- tasks and methods ----------------------------------------------------------------------------


def test_reporting_and_tuning_have_nothing_in_common_and_training_neither(monkeypatch: pytest.MonkeyPatch):
    reporting, tuning = (primitives_tasks(seeds, 20) for seeds in ("reporting", "tuning"))
    assert len(reporting) == 20 * len(KINDS) and {task.kind for task in reporting} == set(KINDS)
    seeds = [{task.seed for task in tasks} for tasks in (reporting, tuning)]
    assert not seeds[0] & seeds[1] and all(len(one) == 20 * len(KINDS) for one in seeds)  # no two kinds share any
    assert min(map(min, seeds)) > 1_000_100_000  # where those for judging a model in training begin, and what it takes
    # A kind's seeds are its own, wherever it stands in a list: those of the published figures.
    assert {task.kind: task.seed for task in primitives_tasks("reporting", 1)} == {
        "recolour": 2_000_000_000, "reshape": 2_000_001_000, "resize": 2_000_002_000, "insert": 2_000_003_000,
        "remove": 2_000_004_000, "floor": 2_000_005_000, "sky": 2_000_006_000, "reshape and recolour": 2_000_007_000,
        "outline": 2_000_008_000, "wear": 2_000_009_000, "air": 2_000_010_000, "behind": 2_000_011_000,
        "exchange": 2_000_012_000, "multiply": 2_000_013_000, "motion": 2_000_014_000, "material": 2_000_015_000,
        "style": 2_000_016_000, "uncover": 2_000_017_000,
    }  # fmt: skip
    monkeypatch.setattr("v2edit.bench.tasks.KINDS", ("sky", "recolour"))
    assert primitives_tasks("reporting", 2, ["sky"])[0].seed == 2_000_006_000
    monkeypatch.undo()
    most = primitives_tasks("tuning", 1000)
    assert max(task.seed for task in most) < FIRST_SEED["reporting"]


def test_the_quick_suite_and_a_kind_are_parts_of_the_whole():
    whole = primitives_tasks("reporting", 20)
    assert set(primitives_tasks("reporting", 3)) < set(whole)
    assert primitives_tasks("reporting", 20, ["sky"]) == [task for task in whole if task.kind == "sky"]
    assert {t.kind for t in primitives_tasks("reporting", 1, ["reshape-and-recolour"])} == {"reshape and recolour"}
    for wrong in ({"kinds": ["levitate"]}, {"count": 0}, {"count": 1001}):
        with pytest.raises(UserError):
            primitives_tasks("reporting", **{"count": 1} | wrong)


def test_a_task_is_the_sample_of_its_seed_and_kind(tmp_path):
    task = BenchTask("sky", FIRST_SEED["tuning"] + 5)
    words = [
        "sample",
        "--seed",
        str(task.seed),
        "--kind",
        task.kind.replace(" ", "-"),
        "-o",
        str(tmp_path / "clip"),
    ]
    assert main(words) == 0
    facts = json.loads((tmp_path / "clip" / "clip.json").read_text())
    assert facts["instruction"] == task.edit.instruction and facts["target_prompt"] == task.prompts.target


@pytest.mark.parametrize("task", [BenchTask, SceneTask])
def test_the_code_that_results_depend_on_is_there(task):
    """A path that was renamed would no longer tell today's results from those of other code."""
    package = Path(v2edit.__file__).parent
    for part in task.code:
        path = package / part
        assert path.is_file() or list(path.rglob("*.py")), part
    assert code_digest(task.code) != code_digest(task.code[1:])


def test_table_c_takes_one_thing_away_each():
    full = V2Edit(subtasks=3)
    changed = {
        name: {k: v for k, v in asdict(one).items() if v != asdict(full)[k]} for name, one in table_c(full).items()
    }
    assert changed == {
        "V2Edit": {},
        "w/o progression": {"subtasks": 1},
        "w/o INC": {"inc": False},
        "w/o PNC": {"pnc": False},
        "w/o AMR": {"amr": False},
        "w/o PNC, AMR": {"pnc": False, "amr": False},
    }
    assert asdict(make_suite("primitives", 25).methods["V2Edit"]) == asdict(EditConfig(steps=25))


def test_settings_reach_all_variants_or_the_one_that_is_named():
    known = make_suite(
        "primitives", 7, ["mixture=0.3", "guidance=None", "v2v.strength=0.5", "wo-pnc.alpha=0.7"]
    ).methods
    variants = [one for one in known.values() if isinstance(one, V2Edit)]
    assert len(variants) == 7 and {one.mixture for one in variants} == {0.3}
    assert known["V2V"].strength == 0.5
    assert [title for title, one in known.items() if getattr(one, "alpha", 0.9) == 0.7] == ["w/o PNC"]
    assert {one.steps for one in known.values()} == {7}
    assert [slug(title) for title in known] == [
        "v2edit", "v2edit-own-mask", "wo-progression", "wo-inc", "wo-pnc", "wo-amr", "wo-pnc-amr", "v2v", "flowedit",
        "ddim-p2p",
    ]  # fmt: skip


def test_a_sweep_is_every_combination_beside_the_method_it_varies():
    known = make_suite("primitives", 5).methods
    found = sweep_methods(known, ["mixture=0,0.7", "ending=same,deterministic", "v2v.strength=0.3"])
    assert list(found) == [
        "V2Edit", "mixture=0, ending=same", "mixture=0, ending=deterministic", "mixture=0.7, ending=same",
        "mixture=0.7, ending=deterministic", "V2V", "V2V, strength=0.3",
    ]  # fmt: skip
    assert found["mixture=0, ending=same"] == V2Edit(steps=5, mixture=0.0, ending="same")
    assert found["mixture=0.7, ending=deterministic"] == found["V2Edit"] == known["V2Edit"]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("mixtur", "1", "there is no setting 'mixtur'"),
        ("seed", "1", "there is no setting 'seed'"),
        ("mixture", "some", "expected float"),
        ("mixture", "7", "expected 0.0 to 1.0"),
        ("solver", "euler", "auto or ddim or"),
        ("amr", "perhaps", "expected bool"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(field, value, says):
    with pytest.raises(UserError, match=re.escape(says)):
        with_field(V2Edit(), field, value)


# --- statistics -----------------------------------------------------------------------------------


def test_intervals_by_hand():
    # Two draws of [0, 3, 6]: means 0, 1.5 ... 6 in 1, 2, 3, 2, 1 of 9 cases, so both tails end at the outermost.
    assert bootstrap_mean([np.array([0.0, 3.0, 6.0])]) == BootstrapMean(3.0, 0.0, 6.0)
    # One draw of each of two pairs, weighed by their sizes: (0 or 1) / 2 + (10 or 20) / 2.
    assert bootstrap_mean([np.array([0.0, 1.0]), np.array([10.0, 20.0])]) == BootstrapMean(7.75, 5.0, 10.5)
    # One draw of each of ten pairs is a coin thrown ten times: two heads or fewer in 5.5 % of cases, one in 1.1 %.
    assert bootstrap_mean([np.array([0.0, 1.0])] * 10) == BootstrapMean(0.5, pytest.approx(0.2), pytest.approx(0.8))
    assert bootstrap_mean([np.full(5, 4.0)]) == BootstrapMean(4.0, 4.0, 4.0)
    assert bootstrap_mean([np.array([1.0, math.nan, 3.0])]) == BootstrapMean(2.0, 1.0, 3.0)
    alone = bootstrap_mean([np.array([5.0]), np.array([1.0, 3.0])])
    assert alone.mean == 3.0 and math.isnan(alone.low)
    assert math.isnan(bootstrap_mean([np.array([math.nan])]).mean)


def test_kinds_with_a_figure_of_one_task_are_drawn_together():
    one, two, nan = np.array([5.0]), np.array([1.0, 3.0]), np.array([math.nan, 7.0])
    assert [group.tolist() for group in pool_singles([two, one, nan])] == [[5.0, 7.0], [1.0, 3.0]]
    assert [group.tolist() for group in pool_singles([two, one])] == [[5.0, 1.0, 3.0]]
    assert [group.tolist() for group in pool_singles([two, two])] == [[1.0, 3.0], [1.0, 3.0]]
    assert [group.tolist() for group in pool_singles([one])] == [[5.0]] and pool_singles([]) == []
    tasks = (("a", "1", 0.2), ("a", "2", math.nan), ("b", "1", 0.6))  # of the second a nothing can be read
    rows = [Row(kind, task, "full", {"score": value}) for kind, task, value in tasks]
    assert Table(rows).mean("full", "score") == BootstrapMean(pytest.approx(0.4), 0.2, 0.6)
    assert math.isnan(Table(rows[:2]).mean("full", "score").low)


def test_intervals_are_as_wide_as_the_theory_says():
    generator = np.random.default_rng(1)
    groups = [generator.normal(offset, 2.0, size=100) for offset in (0.0, 50.0)]
    found = bootstrap_mean(groups)
    error = math.sqrt(sum(group.var(ddof=1) for group in groups) / 100) / 2  # of the mean of two means
    assert found.high - found.low == pytest.approx(2 * NormalDist().inv_cdf(0.975) * error, rel=0.05)


def rows_of(**scores: list[float]) -> list[Row]:
    """Two kinds of tasks, the first two of each method's scores being of the first kind."""
    kinds = ["sky", "sky", "floor", "floor"]
    return [
        Row(kinds[k], str(k), name.replace("_", " "), {"score": value, "seconds": 2.0})
        for name, values in scores.items()
        for k, value in enumerate(values)
    ]


def test_differences_are_paired():
    rows = rows_of(full=[0.1, 0.9, 0.2, 0.6], other=[0.0, 0.8, 0.1, 0.5])
    table = Table(list(reversed(rows)))  # whatever order results come in
    assert table.mean("full", "score").mean == pytest.approx(0.45)
    gap = table.difference("full", "other", "score")
    assert (gap.mean, gap.low, gap.high) == (pytest.approx(0.1),) * 3  # though the scores themselves vary widely
    assert table.mean("other", "score", ["sky"]).mean == pytest.approx(0.4)


def test_the_tables_in_print():
    rows = rows_of(unedited=[0.0, 0.0, 0.0, 0.0], full=[0.5, 0.5, 0.7, 0.7], w_o_it=[0.25, 0.25, 0.25, math.nan])
    text = as_markdown(Table(rows), "full")
    assert "| method | score ↑ | seconds ↓ |" in text
    assert "| full | 0.600 (0.600 … 0.600) | 2.0 (2.0 … 2.0) |" in text
    assert "| w o it | 0.250 (0.250 … 0.250) |" in text  # one kind has a single score left, and is drawn with the other
    assert "| w o it | +0.317 (+0.250 … +0.450) |" in text  # 0.25, 0.25, 0.45 where both are known
    assert "| unedited | +" not in text  # doing nothing is no method to be ahead of
    assert "| full | 0.50 (0.50 … 0.50) | 0.70 (0.70 … 0.70) |" in text
    assert text.startswith("Means over 4 tasks of these kinds: sky, floor.")
    assert as_markdown(Table(rows_of(full=[0.5])), "full").startswith("One task of the kind sky.")
    lines = list(csv.DictReader(as_csv(rows, ["score"]).splitlines()))
    assert len(lines) == 12 and lines[4] == {"kind": "sky", "task": "0", "method": "full", "score": "0.5"}
    assert lines[-1]["score"] == ""


# --- whole runs -----------------------------------------------------------------------------------


OPTIONS = BenchOptions(kinds=("recolour", "floor"), methods=("v2edit", "v2v"), steps=4, count=3)
RESULTS = 2 * 3 * 4  # kinds x tasks x methods, references among them


@pytest.fixture(scope="module", autouse=True)
def preloaded_workers() -> Iterator[None]:
    """Benchmarks start processes that have the libraries imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("v2edit.bench.trials.ProcessPool", PreloadedPool)
        yield


def alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def killed_and_resumed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, BenchReport]:
    """A run killed on its way (SIGKILL, of itself alone), then finished by the same call; what was there in between."""
    folder = tmp_path_factory.mktemp("bench") / "run"
    process = SERVER.Process(target=compare_with_forks, args=(OPTIONS, tiny_model, folder))
    process.start()
    while len(list(folder.glob("results/*/*.npz"))) < 3:
        assert process.is_alive()
        time.sleep(0.01)
    workers = children_of(process.pid or 0)
    assert workers
    process.kill()
    process.join()
    deadline = time.monotonic() + 300  # of a busy machine; they go at once
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.01)
    before = results_in(folder)
    report = compare(OPTIONS, processes=1, model=str(tiny_model), out=folder, sheets=True)
    return folder, before, report


def test_a_killed_run_goes_on_where_it_stood(killed_and_resumed):
    folder, before, _ = killed_and_resumed
    after = results_in(folder)
    assert 3 <= len(before) < len(after) == RESULTS
    assert before.items() <= after.items()
    assert not list(folder.rglob("*.part"))


def test_results_do_not_depend_on_the_number_of_processes(killed_and_resumed, tiny_model, tmp_path):
    report = compare(
        replace(OPTIONS, kinds=("floor",), count=2), processes=2, model=str(tiny_model), out=tmp_path / "two",
    )  # fmt: skip
    whole, part = (results_in(folder) for folder in (killed_and_resumed[0], report.folder))
    assert len(part) == 2 * 4
    assert all(whole[name][1] == frames for name, (_, frames) in part.items())


def test_a_larger_run_takes_what_is_there_and_only_the_report_is_new(killed_and_resumed, tiny_model, monkeypatch):
    folder, _, report = killed_and_resumed
    before = results_in(folder)
    calls = []
    quick = replace(OPTIONS, kinds=("floor",), count=None, quick=True)
    again = compare(quick, processes=1, model=str(tiny_model), out=folder,
                      on_progress=lambda *at: calls.append(at))  # fmt: skip
    assert results_in(folder) == before and [at[2][:7] for at in calls] == ["scoring"]
    assert {path.name for path in again.files} == {
        f"quick{end}" for end in (".md", ".csv", ".html", ".json", "-tables.csv", ".tex")
    }
    assert all(path.exists() for path in report.files)


def test_what_a_run_leaves(killed_and_resumed):
    folder, _, report = killed_and_resumed
    assert "6 tasks" in report.markdown and (folder / "report.md").read_text() == report.markdown
    assert "w/o" not in report.markdown and "| V2V | " in report.markdown
    lines = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    assert len(lines) == RESULTS and {line["method"] for line in lines} == {*REFERENCES, "V2Edit", "V2V"}
    for line in lines:
        assert -1 <= float(line["ssim_outside"]) <= 1 and float(line["seconds"]) >= 0  # by this reader no score
        if line["method"] == "unedited":
            assert float(line["psnr_outside"]) > 59 and float(line["ssim_outside"]) == 1
    facts = json.loads((folder / "report.json").read_text())
    assert facts["methods"]["V2V"]["strength"] == 0.8 and len(facts["tasks"]) == 6
    assert len(list((folder / "sheets").glob("*.png"))) == 6


def test_the_page_is_whole_and_its_films_show_what_the_results_hold(killed_and_resumed, tmp_path):
    folder, _, _ = killed_and_resumed
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert all(link.startswith("data:") for link in page.links) and "http" not in page.script
    data = json.loads(page.data)
    assert data["columns"] == ["unedited", "truth", "autoencoder of the truth", "V2Edit", "V2V"]
    assert len(data["tasks"]) == 6 and {row["method"] for row in data["summary"]} == {*REFERENCES, "V2Edit", "V2V"}
    results = {name: np.frombuffer(frames, np.uint8) for name, (_, frames) in results_in(folder).items()}
    for entry in data["tasks"]:
        (tmp_path / "film.mp4").write_bytes(base64.b64decode(entry["film"].partition(",")[2]))
        film = video.read(tmp_path / "film.mp4")
        parts = np.split(film.frames, len(data["columns"]), axis=2)
        task = BenchTask(entry["kind"], int(entry["name"].rpartition("-")[2]))
        assert film.fps == entry["fps"] and parts[0].shape == (entry["frames"], entry["height"], entry["width"], 3)
        v2v = next(frames for name, frames in results.items() if name.startswith(f"{task.name}/VideoToVideo"))
        expected = {0: task.clips.source.frames, 1: task.clips.target.frames, 4: v2v.reshape(parts[0].shape)}
        for k, frames in expected.items():
            errors = [float(((part.astype(float) - frames) ** 2).mean()) for part in parts]
            assert errors[k] == min(errors) and errors[k] < (
                120 if k < 4 else 400
            )  # noise, which V2V's is, packs worse
        assert set(entry["figures"]) == {*REFERENCES, "V2Edit", "V2V"}


def test_a_methods_name_cannot_end_the_pages_data():
    task = primitives_tasks("reporting", 1, ["sky"])[0]
    rows = [Row("sky", task.name, "</script><b>", {"score": 0.5})]
    page = Page(as_html([ScoredTask(task, rows, ["unedited", "</script><b>"], b"film", 0)], Table(rows), "t", "f"))
    assert json.loads(page.data)["summary"][0]["method"] == "</script><b>"


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, tiny_model):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no benchmark"):
        compare(OPTIONS, model=str(tiny_model), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_two_runs_do_not_work_in_one_folder(killed_and_resumed, tiny_model):
    folder, _, _ = killed_and_resumed
    with (folder / ".bench").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another benchmark is running"):
            compare(OPTIONS, model=str(tiny_model), out=folder)


MISTAKES = {
    "no such method": (["--methods", "magic"], "magic"),
    "no such kind": (["--kinds", "levitate"], "levitate"),
    "no such setting": (["--set", "mixtur=1"], "mixtur"),
    "no such setting to sweep": (["--sweep", "v2v.mixture=0,1"], "mixture"),
    "half an assignment": (["--sweep", "mixture"], "FIELD=VALUE"),
    "choosing by what is reported": (["--sweep", "mixture=0,1", "--seeds", "reporting"], "tuning"),
    "no such model": (["--model", "nothing-here"], "nothing-here"),
    "no processes": (["--processes", "0"], "--processes"),
    "no tasks": (["--count", "0"], "--count"),
}


@pytest.mark.parametrize(("words", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and says in printed.err
    assert list(tmp_path.iterdir()) == []


def interrupt(*_: object, **__: object) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a runner that was started in the background
    signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_says_that_it_can_go_on(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("v2edit.bench.trials.run_trials", interrupt)
    assert main(["bench", "--quick", "--model", str(tiny_model), "-o", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "v2edit: interrupted; the same command continues from here\n"
