"""Results of a blind comparison: means with intervals, preferences, and how far voters agree."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from v2edit.studio.studies import Study, Vote, read_study, read_votes

if TYPE_CHECKING:
    from v2edit.bench.report import BootstrapMean


@dataclass(frozen=True)
class StudyResults:
    """Figures of a study. `means` by label and question; `preferences` is the share of ballots in which the first label
    of a pair has the higher score, ties counted half, by pair and question; both with intervals in which voters are
    drawn anew. `agreement` is Krippendorff's alpha by question (1: voters agree, 0: as by chance; nan: too few)."""

    voters: int
    votes: int
    means: dict[str, dict[str, BootstrapMean]]
    preferences: dict[tuple[str, str], dict[str, BootstrapMean]]
    agreement: dict[str, float]


def study_results(study: Study, votes: Sequence[Vote]) -> StudyResults:
    """Calculate the results of a study from its votes."""
    labels = {one.key: one.label for each in study.comparisons for one in each.candidates}
    # Scores and preferences of each voter: a voter's are alike, so intervals draw voters, not single scores.
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    wins: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    ratings: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    by_comparison: dict[tuple[str, str], dict[str, dict[str, int]]] = defaultdict(dict)
    for vote in votes:
        by_comparison[vote.voter, vote.comparison].update(vote.scores)
    for (voter, _), candidates in by_comparison.items():
        for key, answers in candidates.items():
            for question, score in answers.items():
                scores[labels[key], question][voter].append(score)
                ratings[question][key].append(score)
        for one, other in combinations(sorted(candidates, key=lambda key: study.labels.index(labels[key])), 2):
            for question in study.questions:
                difference = candidates[one][question] - candidates[other][question]
                win = 0.5 if difference == 0 else float(difference > 0)
                wins[labels[one], labels[other], question][voter].append(win)

    from v2edit.bench.report import bootstrap_mean  # which loads torch

    def mean(of: dict[str, list[float]]) -> BootstrapMean:
        return bootstrap_mean([np.array([np.mean(values) for values in of.values()])])

    return StudyResults(
        voters=len({vote.voter for vote in votes}),
        votes=len(votes),
        means={
            label: {question: mean(scores[label, question]) for question in study.questions} for label in study.labels
        },
        preferences={
            pair: {question: mean(wins[*pair, question]) for question in study.questions}
            for pair in combinations(study.labels, 2)
            if any(wins[*pair, question] for question in study.questions)
        },
        agreement={question: krippendorff_alpha(ratings[question].values()) for question in study.questions},
    )


def summarise_study(folder: str) -> dict[str, Any]:
    """Return the results of the study in a folder as clients get them: None for nan, intervals of 95 %."""
    study = read_study(Path(folder))
    found = study_results(study, read_votes(Path(folder)))

    def view(mean: BootstrapMean) -> dict[str, float | None]:
        return {name: None if math.isnan(value) else round(value, 4) for name, value in asdict(mean).items()}

    def rows(of: dict[str, BootstrapMean]) -> dict[str, Any]:
        return {question: view(mean) for question, mean in of.items()}

    return {
        "voters": found.voters,
        "votes": found.votes,
        "means": [{"label": label, **rows(of)} for label, of in found.means.items()],
        "preferences": [{"label": one, "over": other, **rows(of)} for (one, other), of in found.preferences.items()],
        "agreement": {name: None if math.isnan(alpha) else round(alpha, 4) for name, alpha in found.agreement.items()},
    }


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float:
    """Return Krippendorff's alpha for interval data (2011, "Computing Krippendorff's alpha-reliability"): 1 minus the
    observed over the expected disagreement, squared differences of the scores of one unit over those of all. nan where
    no unit has two scores, or all scores are equal."""
    paired = [np.asarray(unit, dtype=float) for unit in units if len(unit) > 1]
    if not paired:
        return float("nan")
    values = np.concatenate(paired)
    # The sum over all ordered pairs of squared differences of n values is 2 n² times their variance.
    observed = sum(2 * len(unit) ** 2 * unit.var() / (len(unit) - 1) for unit in paired) / len(values)
    expected = 2 * len(values) * values.var() / (len(values) - 1)
    return float("nan") if expected == 0 else float(1 - observed / expected)


def votes_csv(study: Study, votes: Sequence[Vote]) -> str:
    """Return all scores as CSV, a line each."""
    labels = {one.key: one.label for each in study.comparisons for one in each.candidates}
    instructions = {each.id: each.instruction for each in study.comparisons}
    voters = {voter: number for number, voter in enumerate(dict.fromkeys(vote.voter for vote in votes), start=1)}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["voter", "time", "instruction", "comparison", "label", "question", "score"])
    for vote in votes:
        for key, answers in vote.scores.items():
            for question, score in answers.items():
                row = [voters[vote.voter], vote.at, instructions[vote.comparison], vote.comparison]
                writer.writerow([*map(_plain_cell, row), _plain_cell(labels[key]), question, score])
    return file.getvalue()


def _plain_cell(value: object) -> object:
    """Keep a spreadsheet from taking a text for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
