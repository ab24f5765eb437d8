"""From what a client asks to a job: which options it may give, and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from v2edit.backbones.families import BUILT_IN
from v2edit.editing.config import EditConfig
from v2edit.errors import UserError
from v2edit.jobs.options import job_from_keywords
from v2edit.jobs.scene import SceneEdit
from v2edit.jobs.video import VideoEdit
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.scenes.config import FitConfig
from v2edit.studio.settings import HUB_ID, Settings

JobKind = Literal["edit", "scene"]
MAX_TEXT = 4000  # characters of an option
# No option that names a file or a folder, or code to run, is taken over HTTP.
MODEL = {"model", "revision", "dtype", "offload", "vae_tiling", "resolution", "attention", "compile", "flow_shift",
         "quantize"}  # fmt: skip
PROMPTS = {"source_prompt", "target_prompt", "lvlm", "lvlm_progression", "lvlm_frames"}
SHARED = MODEL | PROMPTS | {one.name for one in fields(EditConfig)} | {"save_every"}
VIDEO = {"box", "time", "grow", "crop", "colour", "start", "end", "fps", "format", "crf", "shots", "only_shots",
         "model_fps", "seeds", "save_frames", "mask"}  # fmt: skip
SCENE = {one.name for one in fields(FitConfig)} | {"path", "frames", "side", "up", "box3d"}
ALLOWED: dict[JobKind, set[str]] = {"edit": SHARED | VIDEO, "scene": SHARED | SCENE}
NOUNS: dict[JobKind, str] = {"edit": "video", "scene": "scene"}
SCENE_PATHS = ("auto", "views", "orbit")


def check_options(kind: JobKind, options: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return a client's options, without those that are None. Raises `UserError` for one that it may not give."""
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in ALLOWED[kind]:
            raise UserError(f"there is no option {name[:60]!r} here for an edit of a {NOUNS[kind]}")
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(one, (str, int, float, bool)) for one in texts) or len(texts) > 64:
            raise UserError(f"{name} is {str(value)[:60]!r}, expected text or a number")
        if any(isinstance(one, str) and (len(one) > MAX_TEXT or "\0" in one) for one in texts):
            raise UserError(f"{name} is too long, or no text")
    if given.get("mask") not in (None, "auto"):
        raise UserError("mask is 'auto' here; a mask of your own has an id")
    if given.get("path") not in (None, *SCENE_PATHS):
        raise UserError(f"path is {given['path']!r:.60}, expected {', '.join(SCENE_PATHS)}")
    if not isinstance(given.get("lvlm", False), bool):
        raise UserError("lvlm is true or false: whether the studio's language model writes the prompts")
    if given.get("lvlm") and settings.lvlm.model is None:
        raise UserError("this studio was started without a language model (--lvlm)")
    for name in ("box", "time", "shots", "only_shots", "box3d"):
        if isinstance(given.get(name), list):
            given[name] = ("-" if name == "time" else ",").join(map(str, given[name]))
    if (model := given.get("model")) is not None:
        check_model(model, settings)
    return given


def check_model(model: Any, settings: Settings) -> None:
    """Raise `UserError` for a model that is none of the studio's and no id of the Hub: a folder of this machine."""
    if model in (BUILT_IN, settings.model):
        return
    if not isinstance(model, str) or not HUB_ID.fullmatch(model) or Path(model).exists():
        raise UserError(f"model is {model!r:.80}, expected {BUILT_IN!r} or a Hugging Face id, such as owner/name")


def to_keywords(
    kind: JobKind,
    options: Mapping[str, Any],
    settings: Settings,
    mask: Path | None = None,
    trim: list[float | None] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Return the keywords of the Python interface for options that `check_options` returned."""
    keywords = {name: value for name, value in options.items() if name not in ("lvlm", "lvlm_progression")}
    keywords.setdefault("model", settings.model)
    if options.get("lvlm"):
        progression = bool(options.get("lvlm_progression", False))
        keywords["lvlm"] = replace(settings.lvlm, progression=progression)
        if "lvlm_frames" in keywords:
            keywords["lvlm"] = replace(keywords["lvlm"], frames=int(keywords.pop("lvlm_frames")))
    keywords.pop("lvlm_frames", None)
    if mask is not None:
        keywords["mask"] = str(mask)
    for name, value in zip(("start", "end"), trim or (), strict=False):
        if value is not None:
            keywords[name] = value
    if out is not None:
        keywords["out"] = out
    return keywords


def build_job(kind: JobKind, path: Path, instruction: str | None, keywords: Mapping[str, Any]) -> VideoEdit | SceneEdit:
    """Build the job. Raises `UserError`, in one line, for an option that does not take its value."""
    try:
        if kind == "scene":
            return job_from_keywords(SceneEdit, scene=path, instruction=instruction, **keywords)
        return job_from_keywords(VideoEdit, video=path, instruction=instruction, **keywords)
    except TypeError as error:
        raise UserError(" ".join(str(error).split())[:300]) from error


def lvlm_view(config: LVLMConfig) -> dict[str, Any] | None:
    """Return what clients may know of the language model: its name."""
    return None if config.model is None else {"model": config.model}
