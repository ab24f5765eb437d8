"""The LVLM score and FiVE-Acc over a suite: each task's methods side by side, by one vision model or several.

Answers are cached one by one in the benchmark's folder: a killed run asks for what is missing, and no query is sent
twice. What it will cost is told before anything is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np

from v2edit.bench.file_tasks import FileTask
from v2edit.bench.trials import OnProgress, Trial, source_of
from v2edit.errors import UserError
from v2edit.metrics.lvlm_score import JudgeConfig, JudgingCost, Query, estimate_cost, judge, make_queries
from v2edit.metrics.question_accuracy import Question, accuracy, make_questions
from v2edit.prompts.chat import Chat, Picture, sample_frames

log = logging.getLogger(__name__)
Figures = dict[tuple[str, str], dict[str, float]]  # by (method, task)


@dataclass(frozen=True)
class Case:
    """What a judge is asked of one task: the queries that show all methods, and each method's questions."""

    task: str
    queries: list[Query]
    questions: dict[str, dict[str, Question]]  # by method


def judge_trials(
    trials: Sequence[Trial],
    references: Collection[str],
    config: JudgeConfig,
    models: Sequence[str],
    cache: Path,
    on_progress: OnProgress,
) -> tuple[Figures, list[str]]:
    """Return the figures of the trials but of the `references`, which edit nothing: the mean over the judges, and notes
    on how far these agree. Raises `UserError` where a model does not answer; its answers until then are kept."""
    by_judge: dict[str, Figures] = {}
    for model in models:
        one = replace(config, model=model)
        with one.open() as chat:
            by_judge[model] = _judge_all(trials, references, one, chat, cache, on_progress)
    figures: Figures = {}
    for key in next(iter(by_judge.values())):
        names = by_judge[models[0]][key]
        figures[key] = {name: fmean(found[key][name] for found in by_judge.values()) for name in names}
    return figures, agreement(by_judge)


def _judge_all(
    trials: Sequence[Trial],
    references: Collection[str],
    config: JudgeConfig,
    chat: Chat,
    cache: Path,
    on_progress: OnProgress,
) -> Figures:
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.task.name, []).append(trial)
    edited = {trial.task.name for trial in trials if trial.title not in references}
    groups = {name: group for name, group in groups.items() if name in edited}
    identity = chat.identify()
    _tell_cost(groups, references, config, cache, identity)
    figures: Figures = {}
    for number, case in enumerate(_cases(groups, references, config, cache, identity), start=1):
        for method, scores in judge(case.queries, chat).items():
            figures[method, case.task] = {name: score.mean for name, score in scores.items()}
            figures[method, case.task]["± overall"] = scores["overall"].spread
        for method, questions in case.questions.items():
            answers = {name: one.cached() or one.ask(chat) for name, one in questions.items()}
            figures[method, case.task] |= accuracy(questions, answers)
        on_progress(number, len(groups), f"judged {case.task}")
    return figures


def _tell_cost(
    groups: dict[str, list[Trial]], references: Collection[str], config: JudgeConfig, cache: Path, identity: str
) -> None:
    """Log what is to be sent. One task's pictures are in memory at a time."""
    costs: list[JudgingCost] = []
    questions = 0
    for case in _cases(groups, references, config, cache, identity):
        costs.append(estimate_cost(case.queries))
        questions += sum(one.cached() is None for asked in case.questions.values() for one in asked.values())
    missing, of = sum(one.queries for one in costs), sum(one.of_queries for one in costs)
    tokens = sum(one.queries * one.tokens for one in costs)
    log.warning(
        "judging %d tasks by %s: %d queries to ask (of %d), about %s tokens together, and %d questions of FiVE-Acc",
        len(groups), config.model, missing, of, f"{tokens:,}", questions,
    )  # fmt: skip


def _cases(
    groups: dict[str, list[Trial]], references: Collection[str], config: JudgeConfig, cache: Path, identity: str
) -> Iterator[Case]:
    for name, trials in groups.items():
        task = trials[0].task
        source = sample_frames(source_of(trials), config.frames)
        shown = {}
        for trial in trials:
            if trial.title not in references:
                try:
                    shown[trial.title] = sample_frames(trial.load()["frames"], config.frames)
                except UserError:  # which the report tells of
                    if not trial.is_given:
                        raise
        if not shown:
            continue
        queries = make_queries(shown, source, task.instruction, config, cache, identity)
        asked = task.line.questions if isinstance(task, FileTask) else None
        questions = {}
        if asked is not None:
            for title, frames in shown.items():
                pictures = [Picture.from_frame(frame) for frame in frames]
                questions[title] = make_questions(asked, pictures, cache, identity)
        yield Case(name, queries, questions)


def agreement(by_judge: dict[str, Figures]) -> list[str]:
    """Return for each pair of judges how their scores of all edits correlate, and in how many tasks the same method is
    best for both."""
    notes = []
    for (one, first), (other, second) in combinations(by_judge.items(), 2):
        pairs = np.array([(first[key]["overall"], second[key]["overall"]) for key in first])
        tasks = list(dict.fromkeys(task for _, task in first))
        alike = sum(_best(first, task) == _best(second, task) for task in tasks)
        varies = len(pairs) > 2 and bool(pairs.std(0).all())
        correlation = f"correlate by {np.corrcoef(pairs.T)[0, 1]:.2f}" if varies else "are too few to correlate"
        notes.append(
            f"The judges {one} and {other}: their scores of {len(pairs)} edits {correlation}; "
            f"in {alike} of {len(tasks)} tasks the same method is best."
        )
    return notes


def _best(figures: Figures, task: str) -> str:
    return max((method for method, one in figures if one == task), key=lambda method: figures[method, task]["overall"])
