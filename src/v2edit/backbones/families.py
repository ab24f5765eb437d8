"""The table of model families: the files in their folders and the defaults of their edits. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from v2edit.errors import UserError

Offload = Literal["none", "model", "group"]
Quantise = Literal["none", "int8", "fp8", "nf4"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["torch", "flash2", "flash3", "sage"]

FRAME_RATE = 25.0  # frames a second of a clip that does not say

BUILT_IN = "primitives"
BUILT_IN_FOLDER = Path(__file__).parents[1] / "weights" / BUILT_IN
PUBLISHED = "zai-org/CogVideoX-5b"  # the suggestion for videos of the real world
INDEX = "model_index.json"
LEAST_SIDE = 32  # pixels that a clip is edited at
# Models that users ask for: what their ids have in them, and what they are. These no backbone would bring here.
UNSUITABLE = {
    r"cogvideox.*i2v": "an image-to-video CogVideoX, whose network wants a picture beside the video",
    r"\bwan.*((?<!t)i2v|flf|vace|animate|s2v)": "a Wan model that wants pictures or sound beside the text",
    r"skyreels.*i2v": "an image-to-video SkyReels, whose network wants a picture beside the video",
    r"skyreels.*-df-": "a diffusion-forcing SkyReels, whose frames have noise levels of their own",
    r"hunyuan.*(i2v|avatar|custom|foley)": "a HunyuanVideo model that wants pictures or sound beside the text",
    r"stable-video|\bsvd\b|img2vid": "an image-to-video model: it takes a picture and no text, so no prompt steers it",
    r"animatediff": "an AnimateDiff motion adapter, a part for image models and no video model by itself",
    r"stable-diffusion|\bsd[x\d]|sdxl|\bflux|-image\b|hunyuandit|pixart|pix2pix": "a model of still images",
    r"\bgpt-|llava|internvl|vl[\d.]*\b|\bgemma": "a language model, which can write the prompts: give it as --lvlm",
}
# And these are text-to-video families that have no backbone here.
FOREIGN = {
    r"\bltx-?2\b": "an LTX-2 model, which makes sound beside the video",
    r"allegro": "an Allegro model",
    r"cosmos": "a Cosmos model",
    r"open-?sora": "an Open-Sora model",
    r"pyramid-flow": "a Pyramid Flow model",
    r"zeroscope|modelscope|text-to-video-ms": "a ModelScope model",
}
# Each part of a model, and the files that it cannot be without: one of each group.
SAFE, PICKLED = "*.safetensors", "*.bin"
Needs = tuple[tuple[str, ...], ...]
WEIGHTS: Needs = (("config.json",), (SAFE,))
TOKENIZER: Needs = (("tokenizer.json", "spiece.model"),)
SCHEDULER: Needs = (("scheduler_config.json",),)
PARTS: dict[str, Needs] = {
    "text_encoder": WEIGHTS,
    "tokenizer": TOKENIZER,
    "transformer": WEIGHTS,
    "vae": WEIGHTS,
    "scheduler": SCHEDULER,
}

# Libraries whose classes a model's parts may name: diffusers imports whatever library an index names.
LIBRARIES = ("diffusers", "transformers")


def describe_foreign(model: str) -> tuple[str, bool] | None:
    """Return what a Hugging Face id names, by its words alone, where it is of no family here, and whether a backbone
    could bring it here; None for any other."""
    flat = model.lower().replace("_", "-")
    for table in (UNSUITABLE, FOREIGN):
        for pattern, what in table.items():
            if re.search(pattern, flat) and ("cogvideox" not in flat or "CogVideoX" in what):
                return what, table is FOREIGN
    return None


def names(index: Mapping[str, Any], part: str) -> bool:
    """Whether a pipeline's index names the class of a part; it may have null for a part that the model has not."""
    return isinstance(kind := index.get(part), list) and kind[-1:] not in ([], [None])


@dataclass(frozen=True)
class Defaults:
    """Defaults of a model's edits: CogVideoX's as published (V2Edit Sec. 4.1), unless it has its own."""

    guidance: float = 7.0
    """Classifier-free guidance."""
    guidance_2: float | None = None
    """That of a second expert, where it is another."""
    guidance_until: float = 0.0
    """The share of the steps that are left when guidance ends."""
    alpha: float | None = 0.9
    """The share of the steps that an edit runs; None: the largest at whose level the noise's share is `ALPHA_NOISE`."""
    beta: float | None = 0.5
    """The end of the controls' window, as a share of the steps; None: in the same way by `BETA_NOISE`."""
    magnitudes: tuple[tuple[float, float], ...] | None = None
    """Pairs of a noise's share and the magnitude of what the network's layers add there (`editing.calibration`)."""


# The share of noise at CogVideoX's alpha and beta. Other models' schedules reach it after other shares of their steps.
ALPHA_NOISE, BETA_NOISE = 0.96, 0.70
PUBLISHED_DEFAULTS = Defaults()
# Chosen by the sweeps on tuning seeds in recipes/primitives/LOG.md: at alpha .9 the built-in model sees which sky and
# floor there are, and leaves them, at 1 it forgets the colours of what no prompt says; with controls to the end more of
# that is kept. Guidance decides in the first half of the steps whether a hard edit comes; in the second it only costs.
# This is not measured for CogVideoX.
BUILT_IN_DEFAULTS = Defaults(guidance=3.0, guidance_until=0.5, alpha=0.96, beta=0.0)


def parse_resolution(text: str) -> tuple[int, int]:
    """Return the height and width of a resolution, WIDTHxHEIGHT. Raises `UserError` where it is none."""
    found = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    width, height = map(int, found.groups()) if found else (0, 0)
    if min(width, height) < LEAST_SIDE:
        raise UserError(
            f"--resolution is {text!r}, expected a width and a height of {LEAST_SIDE} pixels or more, such as 832x480"
        )
    return height, width


@dataclass(frozen=True)
class Family:
    """A family of models that one backbone covers."""

    name: str
    backbone: str
    """Where its class is: module:class."""
    pipelines: tuple[str, ...]
    """The diffusers pipelines whose folders it reads, the one that is loaded first."""
    schedulers: tuple[str, ...]
    example: str
    """The id of a model of it."""
    defaults: Defaults = PUBLISHED_DEFAULTS
    parts: Mapping[str, Needs] = field(default_factory=lambda: PARTS, hash=False)
    optional_parts: Mapping[str, Needs] = field(default_factory=dict, hash=False)

    def parts_of(self, index: Mapping[str, Any]) -> dict[str, Needs]:
        """Return the parts that a model with an index consists of: the family's, and others that the index names."""
        return dict(self.parts) | {
            part: self.optional_parts.get(part, ()) for part in index if part not in self.parts and names(index, part)
        }

    @property
    def style(self) -> str:
        """The name of the style of its prompts."""
        return re.sub(r"[^a-z0-9]", "", self.name.lower())


FAMILIES: list[Family] = [
    Family(
        "CogVideoX",
        "v2edit.backbones.cogvideox:CogVideoX",
        ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline"),
        ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"),
        PUBLISHED,
    ),
    Family(
        "Wan",
        "v2edit.backbones.wan:Wan",
        ("WanPipeline", "WanVideoToVideoPipeline"),
        ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"),
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        Defaults(guidance=5.0, alpha=None, beta=None),
        optional_parts={"transformer_2": WEIGHTS},
    ),
    Family(
        "LTX-Video",
        "v2edit.backbones.ltx:LTX",
        ("LTXPipeline", "LTXImageToVideoPipeline"),
        ("FlowMatchEulerDiscreteScheduler",),
        "Lightricks/LTX-Video",
        Defaults(guidance=3.0, alpha=None, beta=None),
    ),
    Family(
        "LTX-Video",
        "v2edit.backbones.ltx_condition:LTXCondition",
        ("LTXConditionPipeline",),
        ("FlowMatchEulerDiscreteScheduler",),
        "Lightricks/LTX-Video-0.9.7-dev",
        Defaults(guidance=3.0, alpha=None, beta=None),
    ),
    Family(
        "SkyReels-V2",
        "v2edit.backbones.skyreels:SkyReels",
        ("SkyReelsV2Pipeline",),
        ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
        "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
        Defaults(guidance=6.0, alpha=None, beta=None),
    ),
    Family(
        "HunyuanVideo",
        "v2edit.backbones.hunyuanvideo:HunyuanVideo",
        ("HunyuanVideoPipeline",),
        ("FlowMatchEulerDiscreteScheduler",),
        "hunyuanvideo-community/HunyuanVideo",
        Defaults(guidance=6.0, alpha=None, beta=None),
        PARTS | {"text_encoder_2": WEIGHTS, "tokenizer_2": (("tokenizer.json", "vocab.json"),)},
    ),
    Family(
        "HunyuanVideo 1.5",
        "v2edit.backbones.hunyuanvideo15:HunyuanVideo15",
        ("HunyuanVideo15Pipeline",),
        ("FlowMatchEulerDiscreteScheduler",),
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
        Defaults(guidance=6.0, alpha=None, beta=None),
        PARTS
        | {
            "text_encoder_2": WEIGHTS,
            "tokenizer_2": (("tokenizer_config.json",),),
            "guider": (("guider_config.json",),),
        },
    ),
    Family(
        "Mochi",
        "v2edit.backbones.mochi:Mochi",
        ("MochiPipeline",),
        ("FlowMatchEulerDiscreteScheduler",),
        "genmo/mochi-1-preview",
        Defaults(guidance=4.5, alpha=None, beta=None),
    ),
]


def register(family: Family) -> None:
    """Add a family; the last one that reads a pipeline is taken. Packages can also name a `Family` as an entry point of
    the group `v2edit.families`."""
    FAMILIES.append(family)


def family_of(pipeline: str) -> Family | None:
    """Return the family that reads the folders of a diffusers pipeline, None where there is none."""
    found = next((one for one in reversed(FAMILIES) if pipeline in one.pipelines), None)
    if found is None:
        from importlib.metadata import entry_points

        others = (entry.load() for entry in entry_points(group="v2edit.families"))
        found = next((one for one in others if pipeline in one.pipelines), None)
    return found
