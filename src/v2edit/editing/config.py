"""The settings of an edit, and the only place of their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from tyro.conf import arg

from v2edit.backbones.families import ALPHA_NOISE, BETA_NOISE, Defaults
from v2edit.editing.strength import NORMAL, STRENGTHS
from v2edit.errors import UserError
from v2edit.prompts import PromptPair

if TYPE_CHECKING:
    from v2edit.sampling import Schedule

SolverName = Literal["auto", "ddim", "ddpm", "dpm-ode", "dpm-sde"]
LongMode = Literal["auto", "windows", "blocks"]
Ending = Literal["deterministic", "same"]
# Settings that switch parts of the method off or change them, for research; the command line shows them apart.
ABLATIONS = ("inc", "pnc", "amr", "amr_unconditional", "padding_shared", "ending")


@dataclass(frozen=True)
class EditConfig:
    """Settings of an edit. `inc`, `pnc`, `amr` and `subtasks=1` are the ablations of the paper's Table C."""

    steps: Annotated[int, arg(aliases=["--num-inference-steps"])] = 50
    """Denoising steps: more are slower and a little cleaner. An edit runs the share alpha of them."""
    strength: Annotated[float | str, arg(metavar="subtle|normal|strong|FLOAT")] = NORMAL
    """How much may change, in a word: subtle keeps more of the source, strong changes more than this model's normal. It
    sets alpha, beta and guidance where they are not given. A number is --alpha, by diffusers' name."""
    alpha: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """How far the video is taken back to noise before it is denoised, as a share of the steps: lower keeps more of its
    layout and motion, higher lets shapes change (initial noise control; default: the model's own; CogVideoX: 0.9)."""
    beta: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """How long the source holds the edit back, as a share of the steps: lower keeps more of the source, higher leaves
    more steps to the edit alone (default: the model's own; CogVideoX: 0.5)."""
    subtasks: int = 1
    """Mild edits that the whole edit consists of, 1 to 6: more change more, and take as many times as long. Each is a
    video in the run folder."""
    mixture: float = 0.7
    """From the second subtask on: how much the original video, against the current one, holds the edit. Higher keeps
    more of the original."""
    guidance: Annotated[
        float | None, arg(aliases=["--guidance-scale", "--cfg"], metavar="FLOAT", help_behavior_hint="")
    ] = None
    """How strongly the prompts pull (classifier-free guidance): too high burns colours (default: the model's own;
    CogVideoX: 7)."""
    guidance_2: Annotated[float | None, arg(aliases=["--guidance-scale-2"], metavar="FLOAT", help_behavior_hint="")] = (
        None
    )
    """Guidance of a second expert, which models such as Wan 2.2 A14B have for the steps of little noise (default:
    --guidance, or the model's own)."""
    source_guidance: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """Guidance of the source's own denoising (default: the edit's). Lower pulls the edit further towards its prompt,
    also where the prompts are equal."""
    guidance_until: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None
    """Guidance acts above this share of the steps; the last ones, without it, take half the time (default: the model's
    own; CogVideoX: 0)."""
    solver: SolverName = "auto"
    """The denoising solver; auto is that of the model's own scheduler."""
    ending: Ending = "deterministic"
    """Steps below beta: deterministic, which keeps more of the source, or the same solver as above."""
    inc: bool = True
    """Initial noise control (INC). Off: the edit starts from pure noise and loses the source's layout."""
    pnc: bool = True
    """Per-step noise control (PNC): each step adds the noise that rebuilds the source. Off: what is not edited drifts,
    too."""
    amr: bool = True
    """Attention-map replacement (AMR): words that both prompts share stay where the source has them. Off: they may
    move."""
    amr_unconditional: bool = False
    """Attention-map replacement in guidance's unconditional batch, too."""
    padding_shared: bool = True
    """Count padding tokens among the shared words."""
    cache: float = 0.0
    """Step caching: skip the layers at steps that change little. The most change left out at a time, 0 (off) to 1: 0.1
    is a start; fewer --steps did as well on the built-in model. Wants a calibrated model (v2edit calibrate), and skips
    nothing in blocks (--long)."""
    long: LongMode = "auto"
    """A clip longer than the model was trained on: denoise all of it at once, each frame seeing those around it
    (windows), or overlapping blocks of the length it was trained on one after the other, in memory that does not grow
    (blocks). auto is windows while they fit into memory."""
    loop: bool = False
    """The clip is a loop, its first frame following its last, and the edit stays one."""
    negative_prompt: str = ""
    """What the edited video should not show."""
    seed: int = 0
    """The same seed gives the same video on the same machine."""

    def __post_init__(self) -> None:
        alpha_name = self._read_strength()
        for name in ("alpha", "beta", "mixture", "guidance_until", "cache"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                option = alpha_name if name == "alpha" else f"--{name.replace('_', '-')}"
                raise UserError(f"{option} is {value}, expected 0.0 to 1.0")
        if self.alpha == 0:
            raise UserError(f"{alpha_name} is 0: nothing would be denoised; the paper's value is 0.9")
        if not 1 <= self.subtasks <= 6:
            raise UserError(f"--subtasks is {self.subtasks}, expected 1 to 6")
        if not 1 <= self.steps <= 1000:
            raise UserError(f"--steps is {self.steps}, expected 1 to 1000 (50 is usual)")
        for name in ("guidance", "guidance_2", "source_guidance"):
            if (value := getattr(self, name)) is not None and not 1 <= value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} is {value}, expected 1 (no guidance) or more")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}, expected 0 or more")
        for name, known in (
            ("solver", get_args(SolverName)),
            ("ending", get_args(Ending)),
            ("long", get_args(LongMode)),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} is {getattr(self, name)!r}, expected {' or '.join(known)}")
        start, what = (self.alpha, f"{alpha_name} ({self.alpha})") if self.inc else (1.0, "1")
        if start is not None and self.beta is not None and start <= self.beta and (self.pnc or self.amr):
            raise UserError(
                f"--beta is {self.beta}, expected below {what}, where editing starts: the controls would never act "
                "(--no-pnc --no-amr does without them)"
            )

    def _read_strength(self) -> str:
        """Take a number as alpha, and return the option that alpha is given by. Raises `UserError` for another word,
        and for another alpha beside a number."""
        if self.strength in STRENGTHS:
            return "--alpha"
        try:
            number = float(self.strength)
        except ValueError:
            words = ", ".join(STRENGTHS)
            raise UserError(f"--strength is {self.strength!r}, expected {words}, or a number as --alpha") from None
        if self.alpha not in (None, number):
            raise UserError(f"--strength is {number}, which as a number is --alpha, and that is {self.alpha}: give one")
        object.__setattr__(self, "alpha", number)
        object.__setattr__(self, "strength", NORMAL)
        return "--strength"

    def resolve(self, defaults: Defaults, schedule: Schedule) -> ResolvedConfig:
        """Return these settings with a model's defaults, at this strength, where they leave it open; shares that it
        leaves open, too, are those of `schedule` at its usual levels of noise. Raises `UserError` where the model's
        beta and this alpha leave the controls nothing to act on."""
        if isinstance(self, ResolvedConfig):
            return self
        defaults = STRENGTHS[str(self.strength)].apply(defaults, schedule, self.alpha)
        settings: dict[str, Any] = {setting.name: getattr(self, setting.name) for setting in fields(EditConfig)}
        settings.update(self._guidance(defaults), **self._shares(defaults, schedule))
        if self.guidance_until is None:
            settings["guidance_until"] = defaults.guidance_until
        if self.cache:
            if not defaults.magnitudes:
                raise UserError(
                    f"--cache {self.cache:g}: this model is not calibrated: v2edit calibrate does that, once"
                )
            settings["magnitudes"] = defaults.magnitudes
        return ResolvedConfig(**settings)

    def _guidance(self, defaults: Defaults) -> dict[str, float]:
        """Return the guidance of the edit and of its sources, with each expert."""
        first, second = self.guidance, self.guidance_2
        if first is None:
            first, second = defaults.guidance, second or defaults.guidance_2
        second = second or first
        source = self.source_guidance  # where it is open, the sources' guidance goes with the edit's
        return {
            "guidance": first, "guidance_2": second, "source_guidance": source or first,
            "source_guidance_2": source or second,
        }  # fmt: skip

    def _shares(self, defaults: Defaults, schedule: Schedule) -> dict[str, float]:
        """Return alpha and beta. Raises `UserError` for one that is given and does not go with the model's other."""
        alpha = defaults.alpha if self.alpha is None else self.alpha
        beta = defaults.beta if self.beta is None else self.beta
        alpha = schedule.largest_share(ALPHA_NOISE) if alpha is None else alpha
        beta = schedule.largest_share(BETA_NOISE) if beta is None else beta
        if self.alpha is self.beta is None:  # of few steps none may be between: the controls then act on the first
            shares = [share for k in range(schedule.steps) if (share := schedule.share(k)) <= alpha]
            beta = beta if shares and shares[0] > beta else max(shares[1:], default=0.0)
        if self.inc and self.beta is not None and self.alpha is None and beta >= alpha and (self.pnc or self.amr):
            raise UserError(f"--beta is {beta:g}, expected below this model's --alpha, {alpha:g}, or a larger --alpha")
        return {"alpha": alpha, "beta": beta}

    def for_prompts(self, prompts: PromptPair) -> EditConfig:
        """Return these settings with the prompts' subtasks. Raises `UserError` where `subtasks` is another number."""
        if not prompts.intermediate:
            return self
        count = len(prompts.intermediate) + 1
        if self.subtasks not in (1, count):
            raise UserError(
                f"--subtasks is {self.subtasks}, and the prompts have {count - 1} between source and target, which "
                f"make {count}; leave --subtasks out, or the prompts between"
            )
        return replace(self, subtasks=count)


@dataclass(frozen=True)
class ResolvedConfig(EditConfig):
    """Settings of an edit with one model, with nothing left open."""

    alpha: float = field(kw_only=True)
    beta: float = field(kw_only=True)
    guidance: float = field(kw_only=True)
    source_guidance: float = field(kw_only=True)
    guidance_until: float = field(default=0.0, kw_only=True)
    source_guidance_2: float | None = field(default=None, kw_only=True)
    """Guidance of the sources with the second expert; runs that began before there were two have none."""

    magnitudes: tuple[tuple[float, float], ...] | None = field(default=None, kw_only=True)
    """With step caching, the model's, as in `Defaults`."""

    def guidance_at(self, schedule: Schedule, k: int, classifier_free: bool) -> tuple[float, float]:
        """Return the guidance of the edit and of its sources at step k: that of the step's expert, or 1 where it is
        left out. A network that is told its guidance, and needs no more rows for it, is always told it."""
        if classifier_free and schedule.share(k) <= self.guidance_until:
            return 1.0, 1.0
        if not schedule.expert(k):
            return self.guidance, self.source_guidance
        return self.guidance_2 or self.guidance, self.source_guidance_2 or self.source_guidance
