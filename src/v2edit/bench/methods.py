"""What is compared, and how it is named: settings that a model makes a method of. Nothing here loads torch.

Settings are plain data, so that they travel to worker processes, tell results apart and can be swept.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from v2edit.errors import UserError
from v2edit.prompts import PromptPair

if TYPE_CHECKING:
    from v2edit.backbones import Backbone
    from v2edit.bench.variants import V2Edit

FULL = "full"  # V2Edit as it is, which the others are compared with


class Method(Protocol):
    """An editor with all that it needs: uint8 frames [T, H, W, 3], two prompts and a seed to frames of that shape."""

    def __call__(self, frames: np.ndarray, pair: PromptPair, seed: int) -> np.ndarray: ...


class Settings(Protocol):
    """A frozen dataclass that a model makes a `Method` of."""

    def on(self, backbone: Backbone) -> Method: ...


Some = TypeVar("Some")  # a frozen dataclass of settings


@dataclass(frozen=True)
class Unedited:
    """Doing nothing: the floor of success, and what preservation at its best is."""

    def on(self, backbone: Backbone) -> Method:
        return lambda frames, pair, seed: frames


@dataclass(frozen=True)
class Autoencoded:
    """The *true* edited clip through the model's autoencoder: what no edit with these weights can do better."""

    def on(self, backbone: Backbone) -> Method:
        from v2edit.backbones import Size
        from v2edit.editing.editor import resize_clip

        def edit(frames: np.ndarray, pair: PromptPair, seed: int) -> np.ndarray:
            own = Size(*frames.shape[:3])
            return resize_clip(backbone.decode(backbone.encode(resize_clip(frames, backbone.nearest_size(own)))), own)

        return edit


REFERENCES: dict[str, Settings] = {"source": Unedited(), "autoencoder of the truth": Autoencoded()}


def slug(title: str) -> str:
    """A method's name on the command line and in file names: "w/o PNC, AMR" is wo-pnc-amr."""
    return "-".join(re.findall(r"[a-z0-9.]+", title.lower().replace("/", "")))


def methods(
    full: V2Edit, variants: Callable[[Any], Mapping[str, Settings]], assignments: Sequence[str] = ()
) -> dict[str, Settings]:
    """Every method that is known, by its title: the variants of `full`, and baselines at as many steps.

    An assignment FIELD=VALUE sets a field of V2Edit's configuration in all its variants, NAME.FIELD=VALUE one of the
    method that is called so (`slug`). Raises `UserError` for what there is not.
    """
    from v2edit.bench.baselines import FlowEdit, PromptToPrompt, VideoToVideo

    of_others, steps = [], full.steps
    for name, field, value in map(_parsed, assignments):
        if name is None:
            full = with_field(full, field, value)
        else:
            of_others.append((name, field, value))
    known: dict[str, Settings] = {
        **variants(full),
        "V2V": VideoToVideo(steps),
        "FlowEdit": FlowEdit(steps),
        "DDIM + P2P": PromptToPrompt(steps),
    }
    for name, field, value in of_others:
        title = _titled(name, known)
        known[title] = with_field(known[title], field, value)
    return known


def chosen(known: Mapping[str, Settings], names: Sequence[str]) -> dict[str, Settings]:
    """Those named by their slugs, in the order of `known`; all of them where none is named."""
    titles = {_titled(name, known) for name in names}
    return {title: settings for title, settings in known.items() if not names or title in titles}


def swept(known: Mapping[str, Settings], sweeps: Sequence[str]) -> dict[str, Settings]:
    """A method for every combination of values, from [NAME.]FIELD=VALUE,VALUE…; without a NAME it is `full`'s. The
    method as it is comes before its combinations."""
    axes: dict[str, list[list[tuple[str, str]]]] = {}
    for name, field, values in map(_parsed, sweeps):
        title = FULL if name is None else _titled(name, known)
        axes.setdefault(title, []).append([(field, value) for value in values.split(",")])
    variants: dict[str, Settings] = {}
    for title, of_method in axes.items():
        variants[title] = known[title]
        for combination in product(*of_method):
            settings, words = known[title], [] if title == FULL else [title]
            for field, value in combination:
                settings = with_field(settings, field, value)
                words.append(f"{field}={value}")
            variants[", ".join(words)] = settings
    return variants


def with_field(settings: Some, field: str, value: str) -> Some:
    """The settings with one field read from text, as the command line reads it.

    Raises `UserError` for a field that there is not, or a value that it cannot take.
    """
    import tyro

    known = {one.name: one.type for one in fields(settings) if one.name != "seed"}  # pyright: ignore[reportArgumentType]
    if field not in known:
        raise UserError(f"there is no setting {field!r}; there are {', '.join(known)}")
    words = [f"--{field.replace('_', '-')}={value}"]
    try:
        with redirect_stderr(io.StringIO()):
            return tyro.cli(type(settings), default=settings, args=words, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause := cause.__context__:
            if isinstance(cause, UserError):
                raise cause from None
        hint = get_type_hints(type(settings))[field]
        expected = " or ".join(get_args(hint)) if get_origin(hint) is Literal else known[field]
        raise UserError(f"{field}={value}: expected {expected}") from None


def _parsed(assignment: str) -> tuple[str | None, str, str]:
    match = re.fullmatch(r"(?:([\w-]+)\.)?(\w+)=(.+)", assignment)
    if match is None:
        raise UserError(f"cannot read {assignment!r}, expected FIELD=VALUE or METHOD.FIELD=VALUE")
    return match[1], match[2], match[3]


def _titled(name: str, known: Iterable[str]) -> str:
    for title in known:
        if slug(title) == name:
            return title
    raise UserError(f"there is no method {name!r}; known are {', '.join(map(slug, known))}")
