"""`v2edit eval` on real run folders: the truth scores best, nothing done scores nothing, a judge compares."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from support.judges import score_by_shade
from support.servers import serve
from support.world import write_easy_sample

from v2edit import video
from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.jobs.evaluate import Evaluate, Evaluation
from v2edit.metrics.columns import COLUMNS
from v2edit.metrics.lvlm_score import ASPECTS, JudgeConfig
from v2edit.runs import RunWriter, fingerprint_input


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "world"
    folder.mkdir()
    write_easy_sample(folder)
    return folder


def run_of(sample: Path, out: Path, frames: np.ndarray, **changes: object) -> Path:
    """A run folder as `v2edit edit` leaves it, whose edit is these frames."""
    facts = json.loads((sample / "clip.json").read_text())
    prompts = {"source": facts["source_prompt"], "target": facts["target_prompt"]}
    manifest = {
        "input": fingerprint_input(sample / "clip.mp4"),
        "instruction": facts["instruction"],
        "prompts": prompts,
        "model": {"name": "primitives"},
    }
    with RunWriter(out) as run:
        video.write(frames, run.folder / "edited.mp4", fps=8)
        run.write_manifest(manifest | changes)
    return out


def test_the_truth_is_a_perfect_edit_and_the_source_none(sample: Path, tmp_path: Path):
    clips = {name: video.read(sample / f"{name}.mp4").frames for name in ("truth", "clip")}
    folders = [run_of(sample, tmp_path / name, frames) for name, frames in clips.items()]
    found = Evaluate(tuple(folders), csv=tmp_path / "figures.csv").run()
    truth, nothing = found.rows["truth"], found.rows["clip"]
    assert truth["success"] == 1 and truth["kept"] > 0.8 and truth["hue"] == 1  # as well as the classifier reads
    assert nothing["success"] == 0 and nothing["kept"] > 0.8
    assert truth["psnr_inside"] > nothing["psnr_inside"] + 10
    assert 0.2 < truth["cdc"] < nothing["cdc"]
    assert truth["ctids"] > 0.1 and abs(nothing["ctids"]) < truth["ctids"]
    lines = (tmp_path / "figures.csv").read_text().splitlines()
    assert lines[0].startswith("run,ctids,cdc,") and [line.split(",")[0] for line in lines[1:]] == ["truth", "clip"]
    assert [line.split(" | ")[0] for line in found.markdown.splitlines()[2:4]] == ["| truth", "| clip"]


def test_other_prompts_than_the_samples_have_no_truth(sample: Path, tmp_path: Path):
    other = {"prompts": {"source": "a red ball", "target": "a blue ball"}}
    folder = run_of(sample, tmp_path / "other", video.read(sample / "clip.mp4").frames, **other)
    assert set(Evaluate((folder,)).run().rows["other"]) == {"ctids", "cdc"}


def test_a_judge_sees_runs_of_one_video_side_by_side(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    like = video.read(sample / "clip.mp4").frames
    folders = tuple(run_of(sample, tmp_path / name, np.full_like(like, shade)) for name, shade in SHADES.items())
    with serve(score_by_shade, endless=True) as server:
        config = JudgeConfig(model="m", url=server.url, queries=3, frames=2)
        first = Evaluate(folders, judging=config).run()
        again = Evaluate(folders, judging=config).run()
        assert len(server.requests) == 3, "what was answered is not asked again"
    assert {aspect for aspect in ASPECTS} <= set(first.columns)
    assert first.rows["bright"]["overall"] > first.rows["dim"]["overall"] and first.rows == again.rows
    assert "3 queries to ask" in caplog.text and "answered already" in caplog.text


SHADES = {"bright": 200, "dim": 60}


def test_what_is_wrong_is_said_in_one_line(sample: Path, tmp_path: Path):
    frames = video.read(sample / "clip.mp4").frames
    with pytest.raises(UserError, match="is no finished run"):
        Evaluate((sample,)).run()
    for k, nowhere in enumerate((str(tmp_path / "no.mp4"), "a" * 300)):
        gone = run_of(sample, tmp_path / f"gone-{k}", frames, input={"path": nowhere, "sha256": "0"})
        with pytest.raises(UserError, match="is gone"):
            Evaluate((gone,)).run()
    changed = run_of(sample, tmp_path / "changed", frames, input={"path": str(sample / "clip.mp4"), "sha256": "0"})
    with pytest.raises(UserError, match="has changed since"):
        Evaluate((changed,)).run()
    with pytest.raises(UserError, match="which runs"):
        Evaluate(()).run()


def test_a_table_says_what_its_figures_mean():
    found = Evaluation({"a": {"ctids": 0.25, "cdc": math.nan}, "b": {"ctids": 0.5, "success": 1.0, "flicker": 2.0}})
    head, _, *rows, empty, legend = found.markdown.splitlines()[:6]
    assert head == "| run | CTIDS ↑ | CDC ↑ | success ↑ | flicker ↓ |" and empty == ""
    assert rows == ["| a | 0.250 | – | – | – |", "| b | 0.500 | – | 1.000 | 2.00 |"]
    assert legend.startswith("CTIDS (Haque et al. 2023): CLIP text-image directional similarity")
    assert "undefined (–) where the source stands still" in " ".join(found.markdown.split())


def test_every_figure_has_a_heading_and_a_meaning(sample: Path, tmp_path: Path):
    folder = run_of(sample, tmp_path / "run", video.read(sample / "truth.mp4").frames)
    judged = {*ASPECTS, "overall", "± overall"}
    assert {*Evaluate((folder,)).run().columns, *judged} <= {name for name, one in COLUMNS.items() if one.note}


def test_a_still_clip_has_no_cdc(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    clip = video.read(sample / "clip.mp4").frames
    (tmp_path / "still").mkdir()
    video.write(np.repeat(clip[:1], 9, axis=0), tmp_path / "still" / "clip.mp4", fps=8)
    (tmp_path / "still" / "clip.json").write_text((sample / "clip.json").read_text())
    edited = np.repeat(video.read(sample / "truth.mp4").frames[:1], 9, axis=0)
    folder = run_of(tmp_path / "still", tmp_path / "run", edited)
    assert main(["eval", str(folder), "--csv", str(tmp_path / "figures.csv")]) == 0
    assert "CDC ↑" not in (table := capsys.readouterr().out) or "–" in table.splitlines()[2]
    figures = next(csv.DictReader((tmp_path / "figures.csv").open()))
    assert math.isnan(float(figures["cdc"])) and float(figures["ctids"]) > 0.1


def test_further_metrics_and_a_folder_with_a_page(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    clip = video.read(sample / "clip.mp4").frames
    folder = run_of(sample, tmp_path / "a <b>", clip)
    scene = run_of(
        sample, tmp_path / "scene", clip, kind="scene", changes=[{"edit_transfer": 0.75, "view_error": None}]
    )
    for name in ("before", "after", "subtask-1"):
        frames = video.read(sample / "truth.mp4").frames if name == "subtask-1" else clip
        video.write(frames, scene / f"{name}.mp4", fps=8)
    video.write(clip, folder / "compare.mp4", fps=8)
    words = ["eval", str(folder), str(scene), "--metrics", "pixels", "colour", "-o", str(tmp_path / "out")]
    assert main(words) == 0 and "PSNR source ↑" in capsys.readouterr().out
    same, of_scene = csv.DictReader((tmp_path / "out" / "eval.csv").open())
    assert float(same["psnr_source"]) > 40 and float(same["colour_drift"]) < 1 and same["edit_transfer"] == ""
    assert (
        of_scene["edit_transfer"] == "0.75"
        and not of_scene.get("view_error")
        and float(of_scene["ctids_video"]) > 0.1 > abs(float(of_scene["ctids"]))
    )
    page = (tmp_path / "out" / "index.html").read_text()
    assert "a &lt;b&gt;" in page and 'src="../a%20%3Cb%3E/compare.mp4"' in page
    assert main(words) == 2 and "exists" in capsys.readouterr().err


def test_a_run_of_a_scene_is_measured_along_its_path(sample: Path, tmp_path: Path, capsys):
    before, after = (video.read(sample / f"{name}.mp4").frames for name in ("clip", "truth"))
    folders = {}
    for name, frames in (("edited", after), ("untouched", before)):
        gone = {"path": str(tmp_path / "gone"), "sha256": "0"}  # a scene's videos lie in its run folder
        folders[name] = run_of(sample, tmp_path / name, frames, kind="scene", input=gone)
        (folders[name] / "edited.mp4").unlink()
        video.write(before, folders[name] / "before.mp4", fps=8)
        video.write(frames, folders[name] / "after.mp4", fps=8)
    assert main(["eval", *map(str, folders.values()), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows["edited"]["ctids"] > 0.1 > abs(rows["untouched"]["ctids"])
    assert rows["untouched"]["cdc"] == pytest.approx(1, abs=1e-3)
