"""Evaluate finished runs: by CLIP, by the truth where it is known, and by a language model."""

from __future__ import annotations

import csv
import logging
import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import numpy as np
from tyro.conf import OmitArgPrefixes, Positional, arg

from v2edit.backbones.families import BUILT_IN
from v2edit.errors import UserError
from v2edit.files import is_existing_file, read_json
from v2edit.host import find_device
from v2edit.jobs.clip import ClipOptions, read_edited
from v2edit.jobs.options import OUT, expect_folder, expect_new_file
from v2edit.metrics.columns import CHANGE_FIGURES, COLUMNS, Column, explain_columns, head
from v2edit.metrics.lvlm_score import JudgeConfig
from v2edit.metrics.registry import EditedClip, MetricOptions, find_metrics
from v2edit.prompts import PromptPair
from v2edit.runs import MANIFEST, fingerprint_input
from v2edit.runs.layout import AFTER_VIDEO, BEFORE_VIDEO, COMPARISON_VIDEO, MASK_VIDEO, subtask_video
from v2edit.video.stream import map_frames

if TYPE_CHECKING:
    from v2edit.primitives.edits import Edit
    from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
USUAL_CLIP = "openai/clip-vit-base-patch32"
ANSWERS = Path("runs/judge")  # what a judge said stays there, to be asked once only


@dataclass(frozen=True)
class Run:
    """A finished run: uint8 frames [T, H, W, 3] of both videos, or of the part that was edited, the prompts and the
    instruction."""

    folder: Path
    source_file: Path
    checksum: str
    source: Frames
    edited: Frames
    source_prompt: str
    target_prompt: str
    instruction: str
    model: str
    clip: ClipOptions = ClipOptions()
    scene: SceneFacts | None = None


@dataclass(frozen=True)
class SceneFacts:
    """What a scene's run has besides its renders: its own figures, and its last subtask's edited video, from before the
    scene was reconstructed, uint8 [T, H, W, 3] of another size."""

    figures: dict[str, float]
    video: Frames | None


@dataclass(frozen=True)
class Evaluation:
    """A row of figures for each run, in the order given; nan where a measure does not apply. `known` says what the
    columns are, `folders` where the runs are."""

    rows: dict[str, dict[str, float]]
    known: Mapping[str, Column] = field(default_factory=lambda: COLUMNS)
    folders: Mapping[str, Path] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for figures in self.rows.values() for name in figures))

    @property
    def markdown(self) -> str:
        """The figures as a table that says where each is better, and a legend; – where a figure is not defined."""
        lines = [
            f"| run | {' | '.join(head(name, self.known) for name in self.columns)} |",
            "| --- |" + " ---: |" * len(self.columns),
        ]
        for name, figures in self.rows.items():
            values = ((figures.get(column, math.nan), self.known[column].decimals) for column in self.columns)
            lines.append(f"| {name} | {' | '.join('–' if math.isnan(x) else f'{x:.{n}f}' for x, n in values)} |")
        return "\n".join([*lines, "", textwrap.fill(explain_columns(self.columns, self.known), 120)])

    def write_folder(self, folder: Path) -> list[Path]:
        """Write the table as eval.md and eval.csv, and a page that shows the runs' comparisons, index.html."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / name for name in ("eval.md", "eval.csv", "index.html")]
        files[0].write_text(f"{self.markdown}\n", encoding="utf-8")
        self.write(files[1])
        files[2].write_text(self._as_html(folder), encoding="utf-8")
        return files

    def _as_html(self, folder: Path) -> str:
        """Return the page: a line a run with its figures and its comparison, by relative links."""
        heads = "".join(f"<th>{escape(head(name, self.known))}" for name in self.columns)
        lines = []
        for name, figures in self.rows.items():
            values = ((figures.get(column, math.nan), self.known[column].decimals) for column in self.columns)
            cells = "".join(f"<td>{'–' if math.isnan(x) else f'{x:.{n}f}'}" for x, n in values)
            shown = self.folders.get(name, Path()) / COMPARISON_VIDEO
            link = quote(Path(os.path.relpath(shown, folder)).as_posix())
            video = f'<video src="{link}" muted loop controls preload="metadata"></video>' if shown.is_file() else ""
            lines.append(f"<tr><th>{escape(name)}{cells}<td>{video}")
        legend = escape(explain_columns(self.columns, self.known))
        return PAGE.format(heads=heads, lines="\n".join(lines), legend=legend)

    def write(self, path: Path) -> None:
        """Write the rows as a CSV file, the run in the first column."""
        with path.open("x", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["run", *self.columns])
            table.writeheader()
            table.writerows({"run": name, **figures} for name, figures in self.rows.items())


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Runs, measured</title>
<style>
:root {{ color-scheme: light dark; }} body {{ font: 14px/1.45 system-ui, sans-serif; margin: 24px; }}
th, td {{ padding: 5px 10px; text-align: right; }} th:first-child {{ text-align: left; }} video {{ max-width: 420px; }}
p {{ max-width: 100ch; font-size: 12.5px; }}
</style></head><body>
<table><thead><tr><th>run{heads}<th>before and after</thead><tbody>
{lines}
</tbody></table><p>{legend}</p></body></html>
"""


@dataclass(frozen=True)
class Evaluate:
    """Measure finished runs: CTIDS and CDC, the truth where it is known, and a language model's score."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN", help_behavior_hint="")]
    """Run folders of v2edit edit and v2edit scene; of a scene the renders along the path are measured."""
    clip: Annotated[str | None, arg(metavar="CLIP", help_behavior_hint="")] = None
    """A CLIP by Hugging Face id or folder (default: the built-in world's for the built-in model, else
    openai/clip-vit-base-patch32)."""
    metrics: Annotated[tuple[str, ...], arg(metavar="METRIC", help_behavior_hint="")] = ()
    """Further metrics: pixels, lpips, structure, warp, flicker, colour (outside the run's mask, where it has one), and
    your own as module:function."""
    lpips: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The weights of LPIPS as .npz (default: those of the package lpips)."""
    device: Annotated[str, arg(metavar="DEVICE")] = "cpu"
    """Where CLIP and the other metrics run."""
    out: Annotated[Path | None, arg(aliases=OUT, metavar="FOLDER", help_behavior_hint="")] = None
    """A new folder for the table (eval.md, eval.csv) and a page that shows the runs (index.html)."""
    csv: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """A CSV file to write the figures to, besides."""
    judging: Annotated[OmitArgPrefixes[JudgeConfig], arg(name="judge")] = JudgeConfig()

    def run(self, on_progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> Evaluation:
        """Measure the runs; `on_progress` is called with (done, total, what). Raises `UserError`, in one line."""
        if not self.runs:
            raise UserError("which runs? Give the folders that v2edit edit and v2edit scene made")
        if self.csv is not None:
            expect_new_file(self.csv, "--csv")
        if self.out is not None:
            if self.out.suffix.lower() == ".csv":
                raise UserError(f"-o is {self.out}, expected a folder; did you mean --csv?")
            expect_folder(self.out)
            expect_new_file(self.out, "-o")
        find_device(self.device)  # refuses before anything is read
        metrics = find_metrics(self.metrics, with_clip=True) if self.metrics else []
        options = MetricOptions(lpips=self.lpips, device=self.device)
        measures = [metric.load(options, None) for metric in metrics if not metric.needs_clip]
        runs = {_name(folder, self.runs): read_run(folder) for folder in self.runs}
        rows: dict[str, dict[str, float]] = {}
        for number, (name, run) in enumerate(runs.items(), start=1):
            rows[name] = clip_figures(run, self.clip, self.device) | against_truth(run)
            rows[name] |= {} if run.scene is None else run.scene.figures
            edited = as_clip(run) if measures else None
            for measure in measures:
                assert edited is not None
                rows[name] = dict(measure(edited)) | rows[name]
            on_progress(number, len(runs), f"measured {name}")
        if self.judging.model is not None:
            for name, figures in judge_runs(runs, self.judging, on_progress).items():
                rows[name] |= figures
        known = COLUMNS | {name: one for metric in metrics for name, one in metric.columns.items()}
        evaluation = Evaluation(rows, known, {name: run.folder for name, run in runs.items()})
        if self.csv is not None:
            evaluation.write(self.csv)
        if self.out is not None:
            evaluation.write_folder(self.out)
        return evaluation


def read_run(folder: Path) -> Run:
    """Read a finished run: of a scene the renders before and after along its path. Raises `UserError` where it is none,
    or the source of a video's edit is gone or has changed."""
    from v2edit import video

    try:
        facts = read_json(folder / MANIFEST)
        source, prompts = Path(facts["input"]["path"]), facts["prompts"]
        known = facts["input"]["sha256"], prompts["source"], prompts["target"], facts["model"]["name"]
        clip = ClipOptions.from_record(facts)
        if facts["status"] != "done":
            raise ValueError(facts["status"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        inside = next(iter(sorted(folder.glob(f"*/{MANIFEST}"))), None)
        hint = f"; runs are in it: give them, such as {inside.parent}" if inside else ""
        raise UserError(f"{folder} is no finished run: it has no {MANIFEST} of one that can be read{hint}") from error
    if not all(isinstance(text, str) for text in known):
        raise UserError(f"{folder} is no finished run: its {MANIFEST} has something else for a text")
    checksum, source_prompt, target_prompt, model = known
    if facts.get("kind") == "scene":
        before, after = (video.read(folder / name).frames for name in (BEFORE_VIDEO, AFTER_VIDEO))
    else:
        if not is_existing_file(source) and not os.path.isdir(source):  # a device has no end
            raise UserError(f"the source of {folder} is gone: {source}")
        if fingerprint_input(source)["sha256"] != checksum:
            raise UserError(f"the source of {folder} has changed since: {source}")
        whole, part = clip.cut(video.read(source))
        before, after = whole.frames[part], read_edited(folder).frames[part]
    return Run(
        folder, source, checksum, before, after, source_prompt, target_prompt,
        facts.get("instruction") or target_prompt, model, clip, _read_scene_facts(folder, facts),
    )  # fmt: skip


def _read_scene_facts(folder: Path, facts: dict[str, Any]) -> SceneFacts | None:
    """Return what a scene's run says of itself, or None of a video's."""
    from v2edit import video

    if facts.get("kind") != "scene":
        return None
    figures, changes = {}, facts.get("changes")
    if isinstance(changes, list) and changes and isinstance(changes[-1], dict):
        figures |= {name: changes[-1].get(name) for name in CHANGE_FIGURES}
    figures["reconstruction_psnr"] = facts.get("reconstruction_psnr")
    count = len(changes) if isinstance(changes, list) else 0
    last = folder / subtask_video(count)
    known = {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
    return SceneFacts(known, video.read(last).frames if count and last.is_file() else None)


def as_clip(run: Run) -> EditedClip:
    """Return a run for metrics: with the mask that it wrote, where it has one of the whole clip."""
    from v2edit import video

    mask, path = None, run.folder / MASK_VIDEO
    if path.is_file():
        frames = video.read(path).frames
        if frames.shape[:3] == run.source.shape[:3]:
            mask = map_frames(lambda _, frame: frame[..., 0] > 0, [frames], frames.shape[1:3], bool)
    pair = PromptPair(run.source_prompt, run.target_prompt)
    return EditedClip(run.source, run.edited, pair, run.instruction, mask)


def clip_figures(run: Run, clip: str | None, device: str) -> dict[str, float]:
    """Return CTIDS and CDC of a run (V2Edit Sec. 4.1); of a scene also of its edited video, before reconstruction."""
    from v2edit.backbones import Size
    from v2edit.editing.resize import resize_clip
    from v2edit.metrics.clip_score import ClipEncoder

    model = ClipEncoder.load(clip or (BUILT_IN if run.model == BUILT_IN else USUAL_CLIP), device)
    pair = PromptPair(run.source_prompt, run.target_prompt)
    figures = model.score_edit(pair, run.source, run.edited)
    if run.scene is not None and run.scene.video is not None and len(run.scene.video) == len(run.source):
        source = resize_clip(np.asarray(run.source), Size(*run.scene.video.shape[:3]))
        before = model.score_edit(pair, source, run.scene.video)
        figures |= {f"{name}_video": value for name, value in before.items()}
    return figures


def against_truth(run: Run) -> dict[str, float]:
    """Return the figures of `metrics.attributes.measure` for a clip of `v2edit sample` and its own edit, else none."""
    edit = sampled_edit(run)
    if edit is None:
        return {}
    import numpy as np

    from v2edit.metrics.attributes import measure
    from v2edit.primitives.classifier import SceneClassifier
    from v2edit.primitives.edits import render_truth

    edited = np.asarray(run.edited)  # of a sample, which is small
    return asdict(measure(edit, render_truth(edit, *edited.shape[:3]), edited, SceneClassifier.load().read))


def sampled_edit(run: Run) -> Edit | None:
    """Return the edit of the built-in world that a run made of a whole clip, by what `v2edit sample` wrote beside its
    source."""
    from v2edit.primitives.edits import KINDS, sample_edit

    if run.clip != ClipOptions():
        return None
    try:
        facts: dict[str, Any] = read_json(run.source_file.with_suffix(".json"))
        seed, kind, prompts = facts["seed"], facts["kind"], (facts["source_prompt"], facts["target_prompt"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if prompts != (run.source_prompt, run.target_prompt) or not (isinstance(seed, int) and kind in KINDS):
        return None
    tried = (sample_edit(Random(seed), one) for one in (None, kind))  # as it was sampled: of any kind, or of this one
    return next((one for one in tried if (one.source_prompt, one.target_prompt) == prompts), None)


def judge_runs(
    runs: dict[str, Run], config: JudgeConfig, on_progress: Callable[[int, int, str], None]
) -> dict[str, dict[str, float]]:
    """Return the LVLM score of each run and its spread; runs of one video and instruction are judged side by side."""
    from v2edit.metrics.lvlm_score import estimate_cost, judge, make_queries

    groups: dict[tuple[str, str, ClipOptions], list[str]] = {}
    for name, run in runs.items():
        groups.setdefault((run.checksum, run.instruction, run.clip), []).append(name)
    rows: dict[str, dict[str, float]] = {}
    with config.open() as chat:
        identity = chat.identify()
        queries_of_groups = [
            make_queries(
                {name: runs[name].edited for name in group},
                runs[group[0]].source,
                instruction,
                config,
                ANSWERS,
                identity,
            )
            for (_, instruction, _), group in groups.items()
        ]
        for queries in queries_of_groups:
            log.warning("judging %s: %s", ", ".join(sorted(queries[0].order)), estimate_cost(queries))
        for queries in queries_of_groups:
            what = f"judged {', '.join(sorted(queries[0].order))}"
            for name, scores in judge(queries, chat, lambda done, of, what=what: on_progress(done, of, what)).items():
                rows[name] = {aspect: score.mean for aspect, score in scores.items()}
                rows[name]["± overall"] = scores["overall"].spread
    return rows


def _name(folder: Path, runs: Sequence[Path]) -> str:
    """Return a run's name in the table: its folder's name, or its whole path where two share the name."""
    name = folder.resolve().name
    return name if [one.resolve().name for one in runs].count(name) == 1 else str(folder)
