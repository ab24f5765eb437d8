"""The table of model families: the files in their folders and the defaults of their edits. Loads no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Offload = Literal["none", "model", "group"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

BUILT_IN = "primitives"
BUILT_IN_FOLDER = Path(__file__).parents[1] / "weights" / BUILT_IN
PUBLISHED = "zai-org/CogVideoX-5b"  # the suggestion for videos of the real world
INDEX = "model_index.json"
FAMILIES = {"CogVideoXPipeline": "CogVideoX", "CogVideoXVideoToVideoPipeline": "CogVideoX"}
# Models that users ask for: what their ids have in them, and what they are. These no backbone would bring here.
UNSUITABLE = {
    r"cogvideox.*i2v": "an image-to-video CogVideoX, whose network wants a picture beside the video",
    r"stable-video|\bsvd\b|img2vid": "an image-to-video model: it takes a picture and no text, so no prompt steers it",
    r"animatediff": "an AnimateDiff motion adapter, a part for image models and no video model by itself",
    r"stable-diffusion|\bsd[x\d]|sdxl|\bflux|-image\b|hunyuandit|pixart|pix2pix": "a model of still images",
    r"\bgpt-|llava|internvl|vl[\d.]*\b|\bgemma": "a language model, which can write the prompts: give it as --lvlm",
}
# And these are text-to-video families that have no backbone here.
FOREIGN = {
    r"\bwan(\d|\b)": "a Wan model",
    r"\bltx": "an LTX model",
    r"hunyuan": "a HunyuanVideo model",
    r"mochi": "a Mochi model",
    r"allegro": "an Allegro model",
    r"cosmos": "a Cosmos model",
    r"open-?sora": "an Open-Sora model",
    r"skyreels": "a SkyReels model",
    r"pyramid-flow": "a Pyramid Flow model",
    r"zeroscope|modelscope|text-to-video-ms": "a ModelScope model",
}
SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
# Each part of a model, and the files that it cannot be without: one of each group.
SAFE, PICKLED = "*.safetensors", "*.bin"
WEIGHTS = (("config.json",), (SAFE,))
PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text_encoder": WEIGHTS,
    "tokenizer": (("tokenizer.json", "spiece.model"),),
    "transformer": WEIGHTS,
    "vae": WEIGHTS,
    "scheduler": (("scheduler_config.json",),),
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


@dataclass(frozen=True)
class Defaults:
    """Defaults of a model's edits: CogVideoX's as published (V2Edit Sec. 4.1), unless it has its own."""

    guidance: float = 7.0
    """Classifier-free guidance."""
    beta: float = 0.5
    """The end of the controls' window, as a share of the timesteps."""


PUBLISHED_DEFAULTS = Defaults()
# The built-in model follows its prompts at once: with less guidance and the controls on to the end it keeps more, and
# is closer to the true edit where it changes (docs/ablations.md). This is not measured for CogVideoX.
BUILT_IN_DEFAULTS = Defaults(guidance=2.0, beta=0.0)
