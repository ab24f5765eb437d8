"""Options of other programs (diffusers, ComfyUI, the A1111 web UI, ffmpeg) by what they are here, or why there is
none."""

from __future__ import annotations

import difflib
import itertools
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass

# Of difflib's similarity: an unknown option is taken for a misspelt one from here on.
CUTOFF = 0.7


@dataclass(frozen=True)
class ForeignOption:
    """An option that other programs have: its `names` there, the options here that do the same, the first that a
    command has, and a sentence for a command that edits and has none of them."""

    names: str
    here: tuple[str, ...] = ()
    sentence: str = ""


INSTRUCTION = ForeignOption(
    "prompt p text instruction instruct edit-prompt",
    (),
    "an instruction goes behind the input, in quotes, without an option; --target-prompt says what is to be shown",
)
INPUT = ForeignOption(
    "input i video init-video source src input-video video-path image init-image scene data tasks run",
    (),
    "the input goes first, without an option",
)
FOREIGN_OPTIONS = (
    ForeignOption("cfg-scale cfg scale guidance-strength true-cfg-scale text-guidance", ("--guidance",)),
    ForeignOption(
        "num-steps n-steps num-inference-steps inference-steps infer-steps sampling-steps sample-steps sampling-step "
        "ddim-steps denoising-steps iterations",
        ("--steps", "--fit-steps"),
    ),
    ForeignOption("denoise denoising-strength denoise-strength noise-strength image-strength", ("--strength",)),
    ForeignOption("sampler sampler-name sampling-method sample-solver scheduler", ("--solver",)),
    ForeignOption("negative neg neg-prompt n-prompt negative-text uncond-prompt", ("--negative-prompt",)),
    ForeignOption("noise-seed random-seed manual-seed generator-seed base-seed", ("--seed",)),
    ForeignOption(
        "ckpt checkpoint ckpt-path ckpt-dir model-path model-id model-name model-dir base-model "
        "pretrained-model-name-or-path pretrained-model",
        ("--model",),
    ),
    ForeignOption("llm vlm llm-model lvlm-model vlm-model lvlm", ("--lvlm", "--judge")),
    ForeignOption("base-url api-base api-url llm-url vlm-url", ("--lvlm-url",)),
    ForeignOption("prompt-file prompts-file", ("--prompts",)),
    ForeignOption(
        "output-dir outdir out-dir output-path output-folder output-file save-path save-dir dest outfile o out output",
        ("--csv", "--out"),
    ),
    ForeignOption("fp16 half float16", ("--dtype float16",)),
    ForeignOption("bf16 bfloat16", ("--dtype bfloat16",)),
    ForeignOption("fp32 no-half float32 full-precision", ("--dtype float32",)),
    ForeignOption("precision torch-dtype mixed-precision weight-dtype data-type", ("--dtype",)),
    ForeignOption(
        "cpu-offload enable-model-cpu-offload model-cpu-offload enable-cpu-offload offload-model medvram",
        ("--offload model",),
    ),
    ForeignOption(
        "lowvram low-vram novram sequential-cpu-offload enable-sequential-cpu-offload group-offload",
        ("--offload group",),
    ),
    ForeignOption("enable-vae-tiling tiled-vae vae-tile enable-tiling vae-slicing", ("--vae-tiling",)),
    ForeignOption("gpu gpus gpu-id device-id", ("--device cuda:0",)),
    ForeignOption("cuda use-cuda", ("--device cuda",)),
    ForeignOption("num-workers parallel threads", ("--workers", "--processes")),
    ForeignOption("cpu use-cpu", ("--device cpu",)),
    ForeignOption("save-images export-frames write-frames png", ("--save-frames",)),
    ForeignOption(
        "width height size resolution w h res image-size video-size",
        ("--side",),
        "results have the size of their source: scale that first",
    ),
    ForeignOption(
        "frames num-frames n-frames max-frames video-length length duration frame-count",
        ("--frames",),
        "--start and --end say which part of the video is edited (--save-frames writes the frames of the edited one)",
    ),
    ForeignOption("ss from begin start-time trim-start in-point", ("--start",)),
    ForeignOption("to until end-time stop trim-end out-point", ("--end",)),
    ForeignOption(
        "fps frame-rate framerate export-fps output-fps force-rate", ("--fps",), "only v2edit edit and batch have it"
    ),
    ForeignOption(
        "loras lora-path lora-weights lora-scale lora-dir",
        ("--lora",),
        "only v2edit edit, scene and batch load LoRAs",
    ),
    ForeignOption("shift sample-shift sampling-shift", ("--flow-shift",), "only v2edit edit, scene and batch have it"),
    ForeignOption(
        "mask mask-path mask-image mask-video inpaint",
        (),
        "there are no masks: what both prompts share is held, and a lower --alpha or --beta keeps more",
    ),
    ForeignOption("controlnet control-image ip-adapter", (), "the source's own noise and attention hold the edit"),
    ForeignOption(
        "batch-count num-videos-per-prompt num-images-per-prompt num-samples n-samples num-outputs n-iter seeds",
        ("--seeds",),
        "only v2edit edit makes several at once; v2edit batch edits many",
    ),
    ForeignOption("batch-size", (), "v2edit batch edits many"),
    ForeignOption(
        "quantization load-in-8bit load-in-4bit fp8 gguf",
        ("--quantize", "--transformer"),
        "only v2edit edit, scene and batch have it",
    ),
    ForeignOption("xformers flash-attn attention sdpa enable-xformers", (), "PyTorch's own attention is used"),
    ForeignOption("overwrite force f y yes exist-ok", (), "nothing is overwritten: choose another -o, or remove it"),
    ForeignOption("verbose v debug progress", (), "progress is shown unless --quiet is given"),
    ForeignOption("audio keep-audio sound", (), "the edited video keeps the sound of its source"),
    ForeignOption("codec format output-format container", ("--format",), "results are H.264 in .mp4"),
    ForeignOption("crf quality qp", ("--crf",), "results are H.264 in .mp4"),
    ForeignOption("api-key key lvlm-key", (), "a key comes from the environment: OPENAI_API_KEY or V2EDIT_LVLM_KEY"),
    ForeignOption("dry-run", (), "v2edit edit, scene and batch have it"),
    ForeignOption("token hf-token use-auth-token", (), "log in to the hub with hf auth login"),
    ForeignOption("cache-dir", (), "models lie in the Hugging Face cache: set HF_HOME"),
    ForeignOption(
        "resume continue resume-from resume-from-checkpoint",
        (),
        "v2edit resume RUN continues an edit, and the same command a batch",
    ),
    INSTRUCTION,
    INPUT,
)  # fmt: skip


def suggest_option(typed: str, command: str, options: Collection[str]) -> str:
    """Return what to do about an option that a command with these `options` does not have."""
    name = typed.lstrip("-").lower().replace("_", "-")
    foreign = next((one for one in FOREIGN_OPTIONS if name in one.names.split()), ForeignOption(""))
    if here := next((one for one in foreign.here if one.split()[0] in options), None):
        return f"did you mean {here}?"
    if foreign.sentence and (foreign is INPUT or "--model" in options):
        return foreign.sentence
    close = difflib.get_close_matches(name, [one.lstrip("-") for one in options], 1, CUTOFF)
    return f"did you mean --{close[0]}?" if close else f"v2edit {command} --help lists all"


def is_argument(option: str) -> bool:
    """Return whether an option is one of those that other programs have for an input or an instruction."""
    return _argument_of(option) is not None


def _argument_of(option: str) -> ForeignOption | None:
    name = option.lstrip("-").lower().replace("_", "-")
    return next((row for row in (INPUT, INSTRUCTION) if option.startswith("-") and name in row.names.split()), None)


def place_arguments(words: Sequence[str], options: Collection[str]) -> str | None:
    """Return the arguments of a command that edits, given some for its input and its instruction by options that other
    programs have, as they are to be written; None where they are not, or may be several things."""
    given: dict[ForeignOption, str] = {}
    rest, remaining = [], list(words)
    while remaining:
        name, equals, value = remaining.pop(0).partition("=")
        row = _argument_of(name)
        if row is None or name.replace("_", "-") in options:
            rest.append(name + equals + value)
            continue
        given[row] = value if equals else remaining.pop(0) if remaining else ""
    leading = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
    rest = rest[len(leading) :]
    pieces = [given.get(row) or (leading.pop(0) if leading else "") for row in (INPUT, INSTRUCTION)]
    if not given or not pieces[0] or leading:
        return None
    return " ".join([shlex.quote(pieces[0]), *map(_quote, filter(None, pieces[1:])), *map(shlex.quote, rest)])


def _quote(sentence: str) -> str:
    """Quote a sentence for a shell as people do, where that is the same."""
    return shlex.quote(sentence) if set('"$`\\!') & set(sentence) else f'"{sentence}"'
