"""What reconstructs a scene between the subtasks: the options, and how a run that resumes gets them back."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from v2edit.errors import UserError

if TYPE_CHECKING:
    from v2edit.scenes.trainers.base import Trainer
    from v2edit.scenes.trainers.process import Surroundings

log = logging.getLogger(__name__)
GAUSSIANS = "gaussians"
SILENCE = 1800.0  # seconds


@dataclass(frozen=True)
class ChosenTrainer:
    """A trainer that is another program, with where it runs."""

    trainer: Trainer
    surroundings: Surroundings
    facts: dict[str, Any]


@dataclass(frozen=True)
class TrainerOptions:
    """Which program reconstructs the scene between the subtasks."""

    trainer: Annotated[str, arg(metavar="TRAINER")] = GAUSSIANS
    """gaussians: the built-in ones; nerfstudio:nerfacto or nerfstudio:splatfacto: your own nerfstudio; a .toml file:
    commands of your own, fit and render."""
    trainer_env: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The virtual or conda environment that the trainer is installed in (default: what is on the PATH)."""
    trainer_args: Annotated[str, arg(metavar="ARGUMENTS", help_behavior_hint="")] = ""
    """More arguments for ns-train, with an equals sign: --trainer-args="--pipeline.model.far-plane 50"."""
    trainer_timeout: Annotated[float, arg(metavar="SECONDS")] = SILENCE
    """A trainer that prints nothing for so long is ended; 0: never."""

    def __post_init__(self) -> None:
        if isinstance(self.trainer_env, str):  # in Python
            object.__setattr__(self, "trainer_env", Path(self.trainer_env))
        if not 0 <= self.trainer_timeout < math.inf:
            raise UserError(f"--trainer-timeout is {self.trainer_timeout:g}, expected seconds, or 0 for never")
        if "\0" in self.trainer_args:
            raise UserError("--trainer-args has a character in it that no command takes")
        if self.trainer == GAUSSIANS:
            given = {"--trainer-env": self.trainer_env, "--trainer-args": self.trainer_args,
                     "--trainer-timeout": self.trainer_timeout != SILENCE}  # fmt: skip
            for name in (name for name, value in given.items() if value):
                raise UserError(f"{name} is for other programs: --trainer names one")

    def build(self, on_cpu: bool) -> ChosenTrainer | None:
        """Return the trainer, on a CPU or a GPU; None for the built-in Gaussians. Raises `UserError`, in one line,
        where there is no such trainer, or one of its programs is missing."""
        if self.trainer == GAUSSIANS:
            return None
        from v2edit.scenes.trainers.nerfstudio import PREFIX, Nerfstudio
        from v2edit.scenes.trainers.process import Surroundings, check_system
        from v2edit.scenes.trainers.templates import Commands

        check_system()
        if self.trainer.startswith(PREFIX):
            try:
                arguments = tuple(shlex.split(self.trainer_args))
            except ValueError as error:
                raise UserError(f"--trainer-args cannot be split into words: {error}") from error
            trainer = Nerfstudio(self.trainer.removeprefix(PREFIX), on_cpu, arguments)
        elif Path(self.trainer).suffix.lower() == ".toml":
            if self.trainer_args:
                raise UserError("--trainer-args are for nerfstudio's methods: write them into the .toml file")
            trainer = Commands.read(Path(self.trainer))
        else:
            raise UserError(
                f"--trainer is {self.trainer!r}, expected gaussians, nerfstudio:nerfacto, nerfstudio:splatfacto, or "
                "a .toml file"
            )
        folder = None if self.trainer_env is None else self.trainer_env.absolute()
        if folder is not None and not (folder / "bin").is_dir():
            raise UserError(f"--trainer-env is {folder}, which is no environment: it has no bin folder")
        surroundings = Surroundings(folder, self.trainer_timeout)
        for program in trainer.programs:
            surroundings.find(program)
        facts = {
            "trainer": os.path.abspath(self.trainer) if isinstance(trainer, Commands) else self.trainer,
            "trainer_env": None if folder is None else str(folder),
            "trainer_args": self.trainer_args,
            "trainer_timeout": self.trainer_timeout,
            "calls": trainer.facts | {"version": _installed_version(folder)},
        }
        return ChosenTrainer(trainer, surroundings, facts)

    @classmethod
    def rebuild(cls, record: Mapping[str, Any] | None) -> ChosenTrainer | None:
        """Return the trainer of a run's record; commands that were mended since the run began are taken, with a
        warning. Raises `UserError` where a trainer that is installed is not what it was."""
        if record is None:  # the built-in one, or a run that began before there was a choice
            return None
        env = record["trainer_env"]
        options = cls(
            record["trainer"], None if env is None else Path(env), record["trainer_args"], record["trainer_timeout"]
        )
        chosen = options.build(record["calls"].get("on_cpu", False))
        assert chosen is not None
        from v2edit.scenes.trainers.templates import Commands

        if chosen.facts["calls"] != record["calls"]:
            if "commands" in record["calls"]:
                log.warning("%s has changed since the run began: what is left to do is done by it", record["trainer"])
            else:
                raise UserError(f"--trainer {record['trainer']} is not what it was when the run began; put that back")
        # Whoever was given a run's folder did not choose its programs.
        if isinstance(chosen.trainer, Commands):
            log.warning("going on runs what %s names: %s", record["trainer"], chosen.trainer.describe())
        return chosen


def _installed_version(folder: Path | None) -> str | None:
    """Return the version of nerfstudio in an environment; None where that does not tell."""
    found = [] if folder is None else sorted(folder.glob("lib/python3*/site-packages/nerfstudio-*.dist-info"))
    match = re.search(r"nerfstudio-([^-]+)\.dist-info", found[-1].name) if found else None
    return match.group(1) if match else None
