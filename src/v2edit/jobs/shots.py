"""Shots of a video: each is edited as a clip of its own, those without the subject stay as they are."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from v2edit.errors import UserError
from v2edit.jobs.clip import parse_rate, parse_time
from v2edit.jobs.prompts import GivenPrompts, caption_and_edit
from v2edit.prompts import PromptPair

if TYPE_CHECKING:
    from v2edit.backbones import Checkpoint
    from v2edit.editing.local import LocalEdit
    from v2edit.jobs.job import EditJob
    from v2edit.video import Video
    from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
AUTO, OFF, ALL, SOURCE = "auto", "off", "all", "source"
LISTED = 8  # shots that the log lists; of more, the first and the last


@dataclass(frozen=True)
class Shot:
    """A shot of a clip: its frames from `first` up to `stop`, whether it is edited, and its prompts where they are its
    own."""

    first: int
    stop: int
    edited: bool = True
    prompts: PromptPair | None = None

    @property
    def frames(self) -> slice:
        return slice(self.first, self.stop)

    def __len__(self) -> int:
        return self.stop - self.first

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Shot:
        """Return the shot that run.json describes."""
        prompts = None if record["prompts"] is None else PromptPair(**record["prompts"])
        return cls(record["first"], record["stop"], record["edited"], prompts)


@dataclass(frozen=True)
class ShotOptions:
    """The shots of the video, which of them are edited, and how many of their frames the model sees."""

    shots: Annotated[str | float, arg(metavar="auto|off|TIMES")] = AUTO
    """Edit each shot as a clip of its own, so that nothing bleeds over a cut: cuts are looked for (auto), there are
    none (off), or shots begin at these times, such as 2.5,1:30."""
    only_shots: Annotated[str | int, arg(metavar="auto|all|NUMBERS")] = AUTO
    """Edit these shots alone, such as 1,3-5, or all; the others stay as they are, to the last bit, up to the encoder.
    By default those that the language model (--lvlm) or the built-in world's grammar finds the subject in, without
    either all."""
    model_fps: Annotated[str | float, arg(metavar="auto|source|RATE")] = AUTO
    """Edit every n-th frame, so that the model sees so many a second, and carry the change to those between: of clips
    longer than the model's about as many as it was trained on (auto), all (source), or such as 8."""

    def __post_init__(self) -> None:
        for name in ("shots", "only_shots"):  # in Python numbers, too: 2.5 and (1, 3)
            value = getattr(self, name)
            texts = value if isinstance(value, (tuple, list)) else [value]
            object.__setattr__(self, name, ",".join(str(one).strip() for one in texts))
        self._times()
        self._numbers()
        object.__setattr__(self, "model_fps", str(self.model_fps).strip())
        if self.model_fps not in (AUTO, SOURCE):
            parse_rate(str(self.model_fps), "--model-fps")

    def _times(self) -> list[float]:
        """Return the times at which shots begin. Raises `UserError` where they are none, or not in order."""
        if self.shots in (AUTO, OFF):
            return []
        times: list[float] = []
        with suppress(UserError):
            times = [time for one in str(self.shots).split(",") if (time := parse_time(one, "--shots")) is not None]
        if not times or times != sorted(set(times)):
            raise UserError(
                f"--shots is {self.shots!r}, expected auto, off, or times in rising order, such as 2.5,1:30"
            )
        return times

    def _numbers(self) -> list[range]:
        """Return the numbers of the shots to edit, counted from 1, as ranges; none where they are not given."""
        if self.only_shots in (AUTO, ALL):
            return []
        numbers = []
        for one in str(self.only_shots).split(","):
            first, _, last = map(str.strip, one.partition("-"))
            ends = (first, last if "-" in one else first)
            numbers.append(range(int(ends[0]), int(ends[1]) + 1) if all(map(str.isdecimal, ends)) else range(0))
        if not all(one and one[0] > 0 for one in numbers):
            raise UserError(
                f"--only-shots is {self.only_shots!r}, expected auto, all, or numbers of shots, such as 1,3-5"
            )
        return numbers

    def find(self, source: Video, part: slice, local: LocalEdit, loop: bool = False) -> tuple[Shot, ...]:
        """Return the shots of the part of a video that is edited, in order; none where it is one shot. Those in which a
        local edit may change nothing are not edited. Raises `UserError` for times and numbers that do not fit."""
        from v2edit.video.cut import frames_between
        from v2edit.video.shots import find_cuts

        count = part.stop - part.start
        if loop and self.shots not in (AUTO, OFF):
            raise UserError("--loop: a loop is one shot, so leave --shots out, or --loop")
        cuts: list[int] = []
        if self.shots == AUTO and not loop:
            cuts = find_cuts(source.frames[part], source.fps)
        for time in self._times():
            if time >= float(source.duration):
                raise UserError(f"--shots is {self.shots}, and the video ends at {float(source.duration):.4g} s")
            cuts.append(frames_between(source, time, time)[0] - part.start)
        starts = [0, *sorted({cut for cut in cuts if 0 < cut < count})]
        shots = [Shot(*ends) for ends in zip(starts, [*starts[1:], count], strict=True)]
        if (numbers := self._numbers()) and max(one[-1] for one in numbers) > len(shots):
            there = f"there are {len(shots)} shots" if len(shots) > 1 else "there is one shot"
            raise UserError(f"--only-shots is {self.only_shots}, and {there}")
        if len(shots) == 1:
            return ()
        log.info("shots: %s", _list_shots([float(source.times[part][k]) for k in starts]))
        chosen = numbers or [range(1, len(shots) + 1)]
        shots = [
            replace(one, edited=any(number in some for some in chosen)) for number, one in enumerate(shots, start=1)
        ]
        if local.share is not None:
            shots = [replace(one, edited=one.edited and _may_change(local.share[one.frames])) for one in shots]
        if not any(one.edited for one in shots):
            raise UserError(f"--only-shots is {self.only_shots}, and nothing may change in these shots")
        return tuple(shots)

    def name_cuts(self, mistake: UserError, source: Video, part: slice) -> UserError:
        """Return a mistake about what a clip shows that also names the cuts, where they were not looked for."""
        from v2edit.video.shots import find_cuts

        if self.shots != OFF or not (cuts := find_cuts(source.frames[part], source.fps)):
            return mistake
        shots = _list_shots([float(source.times[part][k]) for k in (0, *cuts)])
        return UserError(f"{mistake}; there are shots, {shots}, and --shots off looks at all as one")

    @property
    def facts(self) -> dict[str, Any]:
        """The options that are given, as plain data."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}

    @property
    def looks(self) -> bool:
        """Whether shots without the subject are to be left out."""
        return self.only_shots == AUTO

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> ShotOptions:
        """Return the options that a run was begun with, as its run.json has them; older ones have none."""
        return cls(**record.get("shot_options", {"shots": OFF, "model_fps": SOURCE}))


def _list_shots(times: Sequence[float]) -> str:
    """Return the numbers of shots with the times, in seconds, at which they begin."""
    listed = [f"{number} at {time:.4g} s" for number, time in enumerate(times, start=1)]
    if len(listed) > LISTED:
        listed[LISTED - 2 : -1] = ["…"]
    return ", ".join(listed)


def _may_change(share: Frames) -> bool:
    return any(bool(frame.any()) for frame in share)


def record_shots(options: ShotOptions, shots: Sequence[Shot]) -> dict[str, Any]:
    """Return what run.json says of the shots; `read_shots` reads it."""
    return {"shot_options": asdict(options), "shots": [asdict(one) for one in shots]}


def read_shots(record: dict[str, Any]) -> tuple[Shot, ...]:
    """Return the shots of a run, as its run.json has them; older ones have none."""
    return tuple(map(Shot.from_record, record.get("shots", [])))


def settle_shots(
    job: EditJob, looks: bool, given: GivenPrompts, checkpoint: Checkpoint, shots: tuple[Shot, ...], frames: Frames
) -> tuple[GivenPrompts, tuple[Shot, ...]]:
    """Let the language model, or without one the built-in world's grammar, write prompts for each of several shots, and
    (`looks`) tell which show what is to change: the others are not edited. Where prompts are given, all shots have
    them. The first edited shot's prompts stand for the whole."""
    if len(shots) < 2:
        return given, shots
    if given.pair is not None:
        if looks and all(one.edited for one in shots):
            log.info("every shot is edited with these prompts; --only-shots 1,3 edits those alone, --lvlm finds them")
        return given, shots
    write = _ask_about if job.lvlm.model is not None else _caption
    found = list(write(job, looks, given, checkpoint, shots, frames))
    if not any(one.edited for one in found):
        raise UserError(
            f"no shot shows what {given.title!r} is about; --only-shots all edits them all, --shots off as one"
        )
    first = next(one.prompts for one in found if one.edited)
    assert first is not None
    if left_out := [str(k) for k, one in enumerate(found, start=1) if not one.edited]:
        which = (
            f"shot {left_out[0]} stays as it is"
            if len(left_out) == 1
            else f"shots {', '.join(left_out)} stay as they are"
        )
        log.warning("%s; --only-shots all edits every shot", which)
    return replace(given, pair=first), tuple(found)


def _ask_about(
    job: EditJob, looks: bool, given: GivenPrompts, checkpoint: Checkpoint, shots: Sequence[Shot], frames: Frames
) -> Iterator[Shot]:
    """Yield the shots with what a language model says of each."""
    from v2edit import backbones
    from v2edit.prompts.lvlm import generate_prompts, open_chat, shows_subject
    from v2edit.prompts.style import read_style

    style = read_style(job.lvlm.style or checkpoint.prompt_style)
    tokenizer, config = backbones.read_info(checkpoint).tokenizer, job.lvlm
    with open_chat(config, job.model_options.device) as chat:
        for shot in shots:
            clip = frames[shot.frames]
            if not shot.edited or (looks and not shows_subject(chat, clip, given.title, config.frames)):
                yield replace(shot, edited=False)
                continue
            pair = generate_prompts(
                chat, clip, given.title, style, tokenizer, config, job.config.subtasks, given.source
            )
            # Each shot has the same subtasks, the number of which the first one's prompts settle.
            config = replace(config, progression=False)
            yield replace(shot, prompts=pair)


def _caption(
    job: EditJob, looks: bool, given: GivenPrompts, checkpoint: Checkpoint, shots: Sequence[Shot], frames: Frames
) -> Iterator[Shot]:
    """Yield the shots with the prompts of the built-in world's grammar; one that has no subject of the instruction is
    not edited."""
    mistakes: list[UserError] = []
    for number, shot in enumerate(shots, start=1):
        if not shot.edited:
            yield shot
            continue
        try:
            pair = caption_and_edit(job.path, frames[shot.frames], given.title, f"shot {number}")
            yield replace(shot, prompts=pair)
        except UserError as error:
            mistake = UserError(f"in shot {number}, {error}")
            if not looks:
                raise mistake from error
            mistakes.append(mistake)
            yield replace(shot, edited=False)
    if len(mistakes) == sum(one.edited for one in shots):
        raise mistakes[0]
