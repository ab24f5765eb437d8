"""Benchmarks of suites of files: own methods and metrics, other tools' results, figures by hand, resumed runs."""

import base64
import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support.bench import Page, compare
from support.processes import InlinePool
from support.servers import completion, serve

from v2edit import video
from v2edit.backbones.hub import find
from v2edit.bench.command import BenchOptions, BenchReport
from v2edit.bench.file_tasks import FileTask
from v2edit.bench.fitting import fit_clip
from v2edit.bench.selection import own_method
from v2edit.bench.suite_files import read_suite
from v2edit.bench.tool_results import find_result, parse_results
from v2edit.bench.writing import write_prompts_for_tasks
from v2edit.errors import UserError
from v2edit.metrics.lvlm_score import JudgeConfig
from v2edit.metrics.registry import find_metrics
from v2edit.prompts import PromptPair
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs import fingerprint_input
from v2edit.video import Video, stream

# What a user writes: a method and a metric, in a file of their own.
OWN = '''
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Brighten:
    """The source, brighter."""

    levels: int = 20

    def build(self, backbone):
        def edit(frames, pair, seed):
            return (frames.astype(int) + self.levels).clip(0, 255).astype(np.uint8)

        return edit


def brightening(clip):
    """How much brighter the edit is, in levels of 255."""
    return clip.edited.mean() - clip.source.mean()


brightening.decimals = 1
'''


def smooth(seed: int, count: int = 5, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames of values 60 to 180, so that twenty levels more or less stay within 8 bits."""
    coarse = np.random.default_rng(seed).integers(60, 180, (count, height // 8, width // 8, 3))
    return coarse.repeat(8, 1).repeat(8, 2).astype(np.uint8)


def write_images(frames: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True)
    for k, frame in enumerate(frames):
        video.write_still(frame, folder / f"{k:03}.png")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of three clips as images, one with a mask of its left half; a tool's results of two of them."""
    folder = tmp_path_factory.mktemp("suite")
    for seed, name in enumerate(("bus", "cat", "dog")):
        write_images(smooth(seed), folder / name)
    half = np.zeros((32, 48, 3), np.uint8)
    half[:, :24] = 255
    video.write_still(half, folder / "mask.png")
    kinds = {"bus": "colour", "cat": "colour", "dog": "shape"}
    lines: list[dict] = [
        {"video": name, "source_prompt": f"a {name}", "target_prompt": f"a red {name}", "kind": kind}
        for name, kind in kinds.items()
    ]
    lines[0]["mask"] = "mask.png"
    (folder / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{}\n")
    (folder / "mine.py").write_text(OWN)
    changed = smooth(0).astype(int)
    changed[:, :, :24] += 50  # inside the mask
    changed[:, :, 24:] += 5  # outside
    write_images(changed.astype(np.uint8), folder / "tool" / "bus")
    write_images(smooth(1) + np.uint8(10), folder / "tool" / "cat_a red cat")
    (folder / "tool" / "dog.mp4").write_bytes(b"no video")
    return folder


METRICS = ("pixels", "flicker", "colour", "mine:brightening")
OPTIONS = BenchOptions(methods=("v2edit", "mine:Brighten"), steps=2, metrics=METRICS)


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("v2edit.bench.trials.ProcessPool", InlinePool)
        yield


@pytest.fixture(scope="module")
def done(suite: Path, tiny_model: Path) -> Iterator[tuple[BenchReport, BenchOptions]]:
    options = replace(OPTIONS, suite=str(suite), results=(f"Tool={suite / 'tool'}",), model=str(tiny_model),
                      processes=1, out=suite / "out")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(suite)
        yield compare(options), options


def rows_of(folder: Path, name: str = "report") -> dict[tuple[str, str], dict[str, float]]:
    rows = list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))
    names = rows[0].keys() - {"kind", "task", "method"}
    return {(row["method"], row["task"]): {name: float(row[name]) for name in names if row[name]} for row in rows}


def db(levels: float) -> float:
    return 20 * math.log10(255 / levels)


def test_another_tools_results_have_the_figures_that_were_put_into_them(done: tuple[BenchReport, BenchOptions]) -> None:
    rows = rows_of(done[0].folder)
    bus, cat = rows["Tool", "bus-colour"], rows["Tool", "cat-colour"]
    assert bus["psnr_outside"] == pytest.approx(db(5)) and cat["psnr_source"] == pytest.approx(db(10))
    assert bus["colour_drift"] == pytest.approx(5) and cat["colour_drift"] == pytest.approx(10)
    assert bus["brightening"] == pytest.approx(27.5) and cat["brightening"] == pytest.approx(10)
    assert bus["flicker"] == cat["flicker"] == 0 and "seconds" not in bus
    assert ("Tool", "dog-shape") not in rows
    assert "Tool has results of 2 of 3 tasks." in done[0].markdown
    assert "Tool: left out, " in done[0].markdown and "dog.mp4" in done[0].markdown  # it is no video


def test_own_methods_and_metrics_stand_in_the_same_table(done: tuple[BenchReport, BenchOptions]) -> None:
    report, _ = done
    rows = rows_of(report.folder)
    assert {method for method, _ in rows} == {"unedited", "autoencoder of the source", "V2Edit", "Brighten", "Tool"}
    for task in ("bus-colour", "cat-colour", "dog-shape"):
        assert rows["Brighten", task]["brightening"] == pytest.approx(20) and rows["unedited", task]["brightening"] == 0
        assert rows["unedited", task].keys() <= rows["V2Edit", task].keys()
    assert rows["Brighten", "cat-colour"]["psnr_source"] == pytest.approx(db(20))
    assert "success" not in rows["V2Edit", "cat-colour"]  # nobody knows the truth
    assert "brightening ↑" in report.markdown and "brightening: How much brighter the edit is" in report.markdown
    assert "1 lines of the suite were left out" in report.markdown


def test_the_same_command_edits_nothing_again_and_says_the_same(done: tuple[BenchReport, BenchOptions]) -> None:
    report, options = done
    files = {path: path.stat().st_mtime_ns for path in report.folder.glob("results/*/*")}
    assert len(files) == 3 * 4 * 2  # a video and its facts of each
    lost = next(path for path in files if path.suffix == ".npz")
    lost.unlink()  # as of a run that was killed before the end
    before = rows_of(report.folder)
    compare(options)
    after = rows_of(report.folder)
    assert before.keys() == after.keys()
    for key, figures in before.items():
        assert {**figures, "seconds": 0} == {**after[key], "seconds": 0}
    written = {path: path.stat().st_mtime_ns for path in report.folder.glob("results/*/*")}
    assert {path for path in files if written[path] != files[path]} == {lost, lost.with_suffix(".mkv")}


def test_what_has_not_changed_is_not_measured_again(
    done: tuple[BenchReport, BenchOptions], suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is; then what another mask changes; then a film that is lost; then all, by another metric."""
    report, options = done
    measured: list[str] = []
    measure = FileTask.measure

    def counting(task: FileTask, *args):
        measured.append(task.name)
        return measure(task, *args)

    monkeypatch.setattr(FileTask, "measure", counting)
    monkeypatch.setattr("v2edit.bench.file_tasks._checksum", lambda path: fingerprint_input(path)["sha256"])
    monkeypatch.chdir(suite)
    before = rows_of(report.folder)
    tables = [compare(options).markdown.partition("Means over")[2] for _ in range(2)]
    assert tables[0] == tables[1] and rows_of(report.folder) == before and not measured
    mask = (suite / "mask.png").read_bytes()
    video.write_still(np.pad(np.full((32, 40, 3), 255, np.uint8), ((0, 0), (0, 8), (0, 0))), suite / "mask.png")
    compare(options)
    assert measured == ["bus-colour"] * 5
    (suite / "mask.png").write_bytes(mask)
    film = next(iter((report.folder / "report-films").iterdir()))
    shown = film.read_bytes()
    film.write_bytes(b"something else")
    compare(options)
    assert len(measured) == 5 and film.read_bytes() == shown
    compare(options, metrics=("pixels",))
    assert len(measured) == 5 + 3 * 4 + 2


def test_long_clips_are_streams_with_the_same_results_and_figures(
    done: tuple[BenchReport, BenchOptions], suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, options = done
    monkeypatch.chdir(suite)
    compare(options)
    monkeypatch.setattr(stream, "STREAM_LIMIT", 0)
    assert isinstance(FileTask(read_suite(suite).lines[0]).mask, stream.FrameStream)
    before, lost = rows_of(report.folder), list(report.folder.glob("results/bus-colour/V2Edit-*"))
    contents = {path: path.read_bytes() for path in lost if path.suffix == ".mkv"}
    for path in (*lost, *(report.folder / "scores").iterdir()):
        path.unlink()
    compare(options)
    after = rows_of(report.folder)
    for key, figures in before.items():
        assert {**figures, "seconds": 0} == pytest.approx({**after[key], "seconds": 0})
    assert contents and all(path.read_bytes() == content for path, content in contents.items())


def test_the_page_shows_every_result_in_step(done: tuple[BenchReport, BenchOptions], suite: Path) -> None:
    page = Page((done[0].folder / "report.html").read_text())
    data = json.loads(page.data)
    assert data["columns"][:3] == ["unedited", "autoencoder of the source", "V2Edit"]
    assert data["kinds"] == ["colour", "shape"]
    entry = next(one for one in data["tasks"] if one["name"] == "bus-colour")
    film = video.read(done[0].folder / entry["film"])
    assert film.frames.shape == (5, 32, 48 * len(entry["titles"]), 3) and film.fps == entry["fps"] == 8
    shown = dict(zip(entry["titles"], np.split(film.frames, len(entry["titles"]), axis=2), strict=True))
    assert np.abs(shown["Tool"][:, :, 30:].astype(float) - smooth(0)[:, :, 30:] - 5).mean() < 9  # of lossy colours
    assert set(shown) == {*data["columns"]} and "Tool" in entry["figures"]
    assert base64.b64encode(b"ftyp") not in page.data.encode()  # films of long clips are files beside the page


@pytest.mark.heavy
def test_ray_says_the_same(done: tuple[BenchReport, BenchOptions], suite: Path, tmp_path: Path) -> None:
    """On Ray itself, two actors on this machine, by the command line."""
    pytest.importorskip("ray")
    _, options = done
    words = ["--suite", suite, "--results", *options.results, "--methods", *options.methods, "--metrics", *METRICS]
    words += ["--steps", 2, "--model", options.model, "-o", tmp_path / "out"]
    found = []
    for more in (["--ray", "local", "--processes", 2], []):
        command = [sys.executable, "-m", "v2edit", "bench", *map(str, [*words, *more])]
        subprocess.run(command, check=True, cwd=suite, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        found.append({key: {**figures, "seconds": 0} for key, figures in rows_of(tmp_path / "out").items()})
        shutil.rmtree(tmp_path / "out" / "results")
    assert found[0] == found[1]


def test_judges_and_results_without_any_method(done: tuple[BenchReport, BenchOptions]) -> None:
    """What other tools made, judged alone; no model edits anything."""
    report, options = done
    scores = {"quality": 40, "preservation": 50, "fulfilment": 90}
    with serve(completion({"A": scores}), endless=True) as server:
        judging = JudgeConfig(model="m", url=server.url, queries=2, frames=2)
        judged = compare(options, methods=("none",), judging=judging, quick=True)
    rows = rows_of(report.folder, "quick")
    assert {method for method, _ in rows} == {"unedited", "autoencoder of the source", "Tool"}
    assert rows["Tool", "bus-colour"]["overall"] == 60 and "overall" not in rows["unedited", "bus-colour"]
    assert len(server.requests) == 2 * 2 and "LVLM score by m: 2 queries a task, 2 frames." in judged.markdown
    table = judged.markdown.partition("## Table 1")[2]
    assert "overall ↑" in table and "| Tool | 60.0 (60.0 … 60.0) | 2 |" in table
    with pytest.raises(UserError, match="leaves nothing"):
        compare(options, methods=("none",), results=())
    with pytest.raises(UserError, match="is the name of a method"):
        compare(options, results=(options.results[0].replace("Tool", "V2V"),))


# --- finding and fitting --------------------------------------------------------------------------


LAYOUTS = {
    "the task's name": "bus-colour.mp4",
    "the clip's": "bus.mp4",
    "another case and marks": "Bus_Colour.MOV",
    "a folder of one video": "bus/result.mp4",
    "a run folder": "bus-colour/edited.mp4",
    "the target prompt behind it": "bus_a-red-bus.mp4",
    "the kind in a folder": "bus/colour.mp4",
}


@pytest.mark.parametrize("name", LAYOUTS.values(), ids=LAYOUTS)
def test_results_are_found_by_name(name: str, suite: Path, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"video")
    if name.endswith("edited.mp4"):
        (tmp_path / name).with_name("compare.mp4").write_bytes(b"video")
    bus, cat, _ = (FileTask(line) for line in read_suite(suite).lines)
    assert find_result(tmp_path, bus, only_edit=True) == tmp_path / name
    assert find_result(tmp_path, cat, only_edit=True) is None


def test_a_clips_own_name_is_not_enough_where_it_is_edited_twice(suite: Path, tmp_path: Path) -> None:
    bus = FileTask(read_suite(suite).lines[0])
    (tmp_path / "bus.mp4").write_bytes(b"video")
    assert find_result(tmp_path, bus, only_edit=False) is None


def test_a_table_of_results(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"video")
    table = tmp_path / "new_result.csv"
    table.write_text("edited_type,prompt,original_video,edited_result_path\nx,y,videos/bus.mp4,x.mp4\n")
    bus, cat, _ = (FileTask(line) for line in read_suite(suite).lines)
    assert find_result(table, bus, only_edit=True) == tmp_path / "x.mp4" and find_result(table, cat, True) is None


@pytest.mark.parametrize("given", ["Tool", "=folder", "Tool=", "Tool=/nowhere"])
def test_results_that_cannot_be_are_one_line(given: str) -> None:
    with pytest.raises(UserError):
        parse_results([given])


def clip_of(values: list[int], fps: int, height: int = 4, width: int = 6) -> Video:
    frames = np.array(values, np.uint8)[:, None, None, None].repeat(height, 1).repeat(width, 2).repeat(3, 3)
    return Video(frames, Fraction(fps))


def test_other_rates_lengths_and_sizes_are_fitted_and_said() -> None:
    source = clip_of([0, 1, 2, 3, 4, 5, 6, 7], fps=8)
    for made, values, says in (
        (clip_of([0, 1, 2, 3, 4, 5, 6, 7], 8), [0, 1, 2, 3, 4, 5, 6, 7], []),
        (clip_of([0, 1, 2, 3, 4, 5, 6, 7], 24), [0, 1, 2, 3, 4, 5, 6, 7], []),  # as many frames: one by one
        (clip_of([0, 2, 4, 6], 4), [0, 0, 2, 2, 4, 4, 6, 6], ["4 fps for 8"]),
        (clip_of(list(range(16)), 16), [0, 2, 4, 6, 8, 10, 12, 14], ["16 fps for 8"]),
        (clip_of([0, 1, 2, 3, 4, 5], 8), [0, 1, 2, 3, 4, 5, 5, 5], ["6 frames for 8: its last frame repeated"]),
        (clip_of(list(range(12)), 8), list(range(8)), ["12 frames for 8: the first 8"]),
        (clip_of(list(range(8)), 8, 8, 12), list(range(8)), ["12x8 for 6x4: resized"]),
        (clip_of(list(range(8)), 8, 4, 4), list(range(8)), ["4x4 for 6x4: resized, stretched"]),
    ):
        frames, notes = fit_clip(made, source)
        assert frames.shape == source.frames.shape and frames[:, 1, 1, 0].tolist() == values
        assert len(notes) == len(says) and all(note.startswith(what) for note, what in zip(notes, says, strict=True))
    with pytest.raises(UserError, match="less than half"):
        fit_clip(clip_of([1, 2], 8), source)


def test_prompts_of_instructions_are_written_once_and_kept(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.jsonl").write_text(json.dumps({"video": str(suite / "bus"), "instruction": "make it blue"}))
    task = FileTask(read_suite(tmp_path / "suite.jsonl").lines[0])
    checkpoint = find("primitives")

    def write(url: str | None) -> list[FileTask]:
        lvlm = LVLMConfig("m" if url else None, url)
        return write_prompts_for_tasks([task], checkpoint, lvlm, tmp_path / "out" / "prompts", lambda *at: None)

    with pytest.raises(UserError, match=r"1 of 1 tasks have an instruction and no prompts.*--lvlm"):
        write(None)
    prompts = {"source": "A red ball hops on a white floor.", "target": "A blue ball hops on a white floor."}
    with serve(completion(prompts)) as server:
        (written,) = write(server.url)
    assert written.prompts == PromptPair(**prompts) and written.identity != task.identity
    assert write(None) == [written]  # kept: nobody is asked again


def test_a_wrong_method_or_metric_is_one_line(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(suite)
    for name, says in (("nowhere:X", "cannot|nothing"), ("mine:Nothing", "nothing"), ("mine:brightening", "no method")):
        with pytest.raises(UserError, match=says):
            own_method(name, 2)
    for name, says in (("psnr", "known are clip, pixels"), ("mine:Nothing", "nothing"), ("clip", "--clip")):
        with pytest.raises(UserError, match=says):
            find_metrics([name], with_clip=False)
    with pytest.raises(UserError, match="a suite of your own"):
        BenchOptions(results=("Tool=/tmp",))
