"""The options of a job. Each option, its default and its help text exist once: here, or in `EditConfig`, `LVLMConfig`
and `FitConfig`. The command line is made from these dataclasses; the Python functions take the same names as keywords.
"""

from __future__ import annotations

import difflib
import numbers
import os
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from tyro.conf import arg

from v2edit.backbones.families import BUILT_IN
from v2edit.backbones.hub import Checkpoint, find
from v2edit.backbones.magnitudes import read_magnitudes
from v2edit.backbones.options import LoadOptions
from v2edit.errors import UserError
from v2edit.host import launched_processes
from v2edit.runs import check_save_every, default_run_folder, fingerprint_input
from v2edit.runs.layout import SPLAT_SUFFIXES
from v2edit.runs.snapshots import SAVE_EVERY

if TYPE_CHECKING:
    from v2edit.backbones import Backbone
    from v2edit.backbones.memory import MemoryMode

Job = TypeVar("Job")
OUT = ["-o", "--output"]  # other names of --out on the command line
FILE_SUFFIXES = (
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".webp", ".png", ".jpg", ".jpeg"),
    *(*SPLAT_SUFFIXES, ".json", ".zip"),
)
Text = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
# The options of loading that run.json has under their own names; device and dtype are those of the loaded model.
RECORDED = [one.name for one in fields(LoadOptions) if one.name not in ("device", "dtype")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
# The Python types of an option's values, and what a message calls them.
KINDS: dict[Any, tuple[Any, str]] = {
    str: ((str, os.PathLike), "text"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    NoneType: (NoneType, "None"),
}
ARRAYS = ("mask", "keep")  # what may be an array, too
LISTS = ("box", "time", "box3d", "shots", "only_shots")  # what may be a tuple or a list of numbers, too


@dataclass(frozen=True)
class ModelChoice:
    """Which video model."""

    model: Annotated[str, arg(metavar="MODEL")] = BUILT_IN
    """The built-in model, a Hugging Face id or a local diffusers folder."""
    revision: Annotated[str | None, arg(metavar="REVISION", help_behavior_hint="")] = None
    """Branch, tag or commit of a Hugging Face model."""
    allow_pickle: bool = False
    """Accept weights that are pickles (.bin) where a model has no others; no code in them is run."""
    cache_file: File = None
    """What v2edit calibrate wrote of the model, for --cache (default: step_cache.json in the model's folder)."""

    def find(self) -> Checkpoint:
        """Find the model by its index. Raises `UserError` where there is no such model or it lacks a part."""
        found = find(self.model, self.revision, self.allow_pickle)
        return replace(found, magnitudes=read_magnitudes(self.cache_file)) if self.cache_file else found


@dataclass(frozen=True)
class ModelOptions(LoadOptions, ModelChoice):
    """Which video model, where it runs, and what it needs."""

    def find(self) -> Checkpoint:
        for file in self.weight_files:
            if file.is_local:
                file.fetch()
        return super().find()

    def load(self, checkpoint: Checkpoint, mode: MemoryMode | None = None) -> Backbone:
        """Load the weights of a model that `find` found, to run in a memory mode (default: what the options say).
        Raises `UserError` where they cannot be loaded."""
        from v2edit import backbones

        if launched_processes()[1] == 1:
            return backbones.load(checkpoint, self, mode=mode)
        from v2edit.backbones.processes import LeadingBackbone

        return cast("Backbone", LeadingBackbone(self._load_share(checkpoint)))  # in one mode with the others

    def serve(self) -> None:
        """Compute a share of another process's edit, whose model these options load, until that is done. Raises
        `UserError` as loading does."""
        from v2edit.backbones.processes import follow

        follow(self._load_share(self.find()))

    def _load_share(self, checkpoint: Checkpoint) -> Any:
        """Load a model whose networks compute this process's share of each call."""
        from v2edit import backbones
        from v2edit.backbones.processes import join, split

        if "," in self.device:
            raise UserError(f"--device is {self.device!r}, and torchrun has given each process a device: leave it out")
        if self.block_processes > 1:
            raise UserError("--block-processes: torchrun's processes share each call already; leave one of the two out")
        heads = join()
        backbone: Any = backbones.load(checkpoint, replace(self, device=self.device.partition(":")[0]))
        split(backbone, heads)
        return backbone

    def record(self, checkpoint: Checkpoint, backbone: Backbone) -> dict[str, Any]:
        """Describe how the model was loaded, for run.json; `from_record` reads it."""
        name = checkpoint.name
        return {
            "model": {
                "name": name if checkpoint.commit or name == BUILT_IN else os.path.abspath(name),
                "revision": self.revision,
                "commit": checkpoint.commit,
                "device": ",".join(str(one.device) for one in (backbone, backbone.replica) if one is not None),
                "dtype": str(backbone.dtype).removeprefix("torch."),
            },
            **{name: getattr(self, name) for name in RECORDED},
            "lora": [file.absolute for file in self.loras],
            "transformer": [file.absolute for file in self.transformers],
            "weight_files": self.fingerprint_weight_files(),
            "memory": backbone.memory_mode,
            "allow_pickle": checkpoint.pickles,
        }

    def fingerprint_weight_files(self) -> dict[str, str]:
        """Return the SHA-256 of each file of weights that the options name."""
        return {file.absolute: fingerprint_input(file.fetch())["sha256"] for file in self.weight_files}

    def check_weight_files(self, record: dict[str, Any]) -> None:
        """Raise `UserError` unless the files of weights are what they were when a run began."""
        before, now = record.get("weight_files", {}), self.fingerprint_weight_files()
        for name in before:
            if now.get(name) != before[name]:
                raise UserError(f"{name} is not what it was when the run began; put that back")

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> ModelOptions:
        """Return the options that load the model of a run again, the same commit on the same device."""
        model = record["model"]
        options = {name: record[name] for name in RECORDED if name in record}  # older runs lack the newer ones
        return cls(
            model=model["name"],
            revision=model["commit"] or model["revision"],
            allow_pickle=record["allow_pickle"],
            device=model["device"],
            dtype=model["dtype"],
            **options,
        )


@dataclass(frozen=True)
class PromptOptions:
    """Where the prompts come from. Without any, the instruction makes the target prompt of the source prompt."""

    source_prompt: Text = None
    """What the video or scene shows. Unless given: `source_prompt` in the .json beside it, or what the built-in model's
    classifier sees."""
    target_prompt: Text = None
    """What it is to show, as like the source prompt as the edit allows."""
    prompts: File = None
    """The prompts in a file, from v2edit prompts -o or another run's run.json."""


@dataclass(frozen=True)
class RunOptions:
    """Where the results go, and how often the run is saved."""

    out: Annotated[Path | None, arg(aliases=OUT, metavar="FOLDER", help_behavior_hint="")] = None
    """The run folder to make (default: runs/<video or scene>-<instruction>); it must not exist."""
    save_every: Annotated[int, arg(metavar="STEPS")] = SAVE_EVERY
    """Denoising steps between two snapshots, from which v2edit resume continues."""

    def __post_init__(self) -> None:
        expect_folder(self.out)
        check_save_every(self.save_every)

    def folder(self, path: Path, title: str) -> Path:
        """Return the run folder of an edit of `path`, called after its title where no --out is given."""
        return self.out or default_run_folder(path, title)


def as_path(given: str | os.PathLike[str]) -> Path:
    """Return the path of what is edited. Raises `UserError`, in one line, for frames in place of a file."""
    try:
        return Path(given)
    except TypeError:
        raise UserError(
            f"the input is {type(given).__name__}, expected a file or a folder: v2edit.video.write(frames, 'clip.mp4', "
            "fps=8) writes frames, uint8 [T, H, W, 3], as a video"
        ) from None


def job_from_keywords(job: type[Job], **options: Any) -> Job:
    """Build a job (a dataclass with groups of options) from option names as keywords.

    Keywords are the job's own fields, those of its groups by their names on the command line with `_` for `-`, and
    whole groups by their fields (`config=EditConfig(...)`); a single option goes over its group's. Raises `TypeError`
    where there is no such option, and `UserError` for a value that an option cannot take."""
    groups: dict[str, Any] = {one.name: one.default for one in fields(job) if is_dataclass(one.default)}  # pyright: ignore[reportArgumentType]
    single = {name: (group, field) for group, default in groups.items() for name, field in _names(default).items()}
    own = {one.name for one in fields(job)} - groups.keys()  # pyright: ignore[reportArgumentType]
    changes: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    hints = get_type_hints(job)
    for name, value in _by_own_names(options).items():
        if name in groups and isinstance(value, type(groups[name])):
            groups[name] = value
        elif name in own:
            _check_type(name, value, hints[name])
            values[name] = value
        elif name in single:
            group, field = single[name]
            _check_type(name, value, get_type_hints(type(groups[group]))[field])
            changes.setdefault(group, {})[field] = (
                Path(value) if name in ("out", "prompts", "cache_file") and value else value
            )
        else:
            close = difflib.get_close_matches(name, [*own, *groups, *single], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"there is no option {name!r}{hint}")
    filled = {group: replace(value, **changes.get(group, {})) for group, value in groups.items()}
    return job(**values, **filled)


def _by_own_names(options: dict[str, Any]) -> dict[str, Any]:
    """Return keywords with those that have a second name on the command line, --output for --out, by their first.
    Raises `TypeError` where both are given."""
    for alias in (name.strip("-") for name in OUT):
        if alias in options:
            if "out" in options:
                raise TypeError(f"out and {alias} are one option: give one of them")
            options = {"out" if name == alias else name: value for name, value in options.items()}
    return options


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Raise `UserError` for a value of another type than its option's, where that is text, a number or a choice."""
    kinds = (hint,) if get_origin(hint) is Literal or isinstance(hint, type) else get_args(hint)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    plain = [KINDS[kind] for kind in kinds if kind in KINDS]
    if (
        name in ARRAYS
        or (name in LISTS and isinstance(value, (tuple, list)))
        or len(plain) + (len(choices) > 0) < len(kinds)
    ):
        return
    is_plain = isinstance(value, tuple(kind for kind, _ in plain)) and (bool in kinds or not isinstance(value, bool))
    if not is_plain and not (isinstance(value, str) and value in choices):
        known = [*map(str, choices), *(called for kind, called in plain if kind is not NoneType)]
        raise UserError(f"--{name.replace('_', '-')} is {value!r:.60}, expected {' or '.join(known)}")


def _names(group: Any) -> dict[str, str]:
    """Map the keyword of each option of a group to its field: its name on the command line with `_` for `-`."""
    hints = get_type_hints(type(group), include_extras=True)

    def keyword(field: str) -> str:
        names = (getattr(one, "name", None) for one in getattr(hints[field], "__metadata__", ()))
        return next((name for name in names if name), field).replace("-", "_")

    return {keyword(one.name): one.name for one in fields(group)}


def expect_folder(out: Path | None) -> None:
    """Raise `UserError` for an --out that is named like a file."""
    if out is not None and out.suffix.lower() in FILE_SUFFIXES:
        raise UserError(
            f"-o is {out}, expected a folder, which the results are written into (a video as edited.mp4): try -o "
            f"{out.with_suffix('')}"
        )


def expect_new_file(out: Path, option: str) -> None:
    """Raise `UserError` for a file to write that exists or has no folder, before the work that it is to hold."""
    if out.exists():
        raise UserError(f"{out} exists; choose another {option} or remove it")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: there is no folder {out.parent}; make it or choose another {option}")


def expect_at_least(least: int, **numbers: int | None) -> None:
    """Raise `UserError` for an option's number that is below its least value."""
    for name, value in numbers.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}, expected {least} or more")
